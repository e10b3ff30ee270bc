"""Finished runs of one or several comparisons as one table: `python -m fastmix report`."""
