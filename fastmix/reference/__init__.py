"""The papers' equations in plain PyTorch: the oracle in float64, and the backend where no kernel serves."""
