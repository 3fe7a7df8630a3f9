"""Arms in processes of their own, and a machine shared out among them."""
