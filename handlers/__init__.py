"""What runs inside a TorchServe worker. Shipped in every archive; imports nothing else of this project."""
