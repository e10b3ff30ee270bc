"""The pictures that the commands draw."""
