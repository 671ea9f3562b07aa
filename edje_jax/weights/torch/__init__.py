"""The PyTorch and sentence-transformers modules that travel with the weights; no JAX in them."""
