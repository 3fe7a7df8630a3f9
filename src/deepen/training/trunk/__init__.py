"""What the frozen blocks below the lowest trained one compute, kept on disk."""
