"""Foreign and own checkpoints: names as data, both directions."""
