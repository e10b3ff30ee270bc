"""The commands of ``python -m fastmix``, a file each."""
