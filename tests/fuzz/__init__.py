"""Malformed inputs by the thousand: each is refused in one sentence, or works."""
