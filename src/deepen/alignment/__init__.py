"""A block moved onto another along what it is indifferent to, and how well that went."""
