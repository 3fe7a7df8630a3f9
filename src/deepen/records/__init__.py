"""Schemas of everything that is written."""
