"""Official checkpoints: where they are published, how they are fetched, and the store of those that were."""
