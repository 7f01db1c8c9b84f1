"""How a batch gets to a worker and back."""
