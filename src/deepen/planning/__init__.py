"""The new stack as data: which blocks, where, from which parents, at what cost."""
