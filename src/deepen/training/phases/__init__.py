"""Runs in which one part of the model trains after another."""
