"""What only a GPU can answer. `device_check.sh` runs it all."""
