"""What blocks and gaps of a base are worth on a text, before anything is trained."""
