"""From an entry and its weights to an archive."""
