"""Official checkpoints: where they are published, how they are fetched, and the folder that keeps them."""
