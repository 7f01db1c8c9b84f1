"""Train the demo models on drawn pictures, and score them."""
