"""Files that other programs read while they change: atomic writing, digests, and a lock on a folder."""
