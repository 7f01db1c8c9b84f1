"""Read checkpoints: layouts, strict loading, digests."""
