"""The program behind ``python -m fastmix``: it imports the library, never the reverse."""
