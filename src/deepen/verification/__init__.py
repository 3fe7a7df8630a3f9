"""Proof that a grown checkpoint is what it claims, and what lies in it."""
