"""New blocks as parts: taken off a grown model, put on its base, combined, made again."""
