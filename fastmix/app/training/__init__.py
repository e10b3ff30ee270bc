"""python -m fastmix train: see `command` for the order of things."""
