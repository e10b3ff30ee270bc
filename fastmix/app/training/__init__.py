"""Training a classifier: `setup` builds what a run works on, `loop` trains it, `run` keeps its folder."""
