"""Rows of text, as sequences of tokens in a fixed order."""
