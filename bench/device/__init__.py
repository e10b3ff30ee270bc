"""What only a GPU can answer. `check.sh` runs it all, in three calls."""
