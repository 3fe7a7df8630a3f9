"""Which span of blocks, repeated without training, helps on a text: scanned, and held to chance."""
