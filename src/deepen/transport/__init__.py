"""Optimal transport between the neurons of two blocks: cost → plan → push."""
