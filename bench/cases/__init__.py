"""What is timed: a file per operator, whose `cases()` returns its list of `base.Case`."""
