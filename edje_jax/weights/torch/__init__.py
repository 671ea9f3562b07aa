"""What runs without JAX: the PyTorch module and ONNX."""
