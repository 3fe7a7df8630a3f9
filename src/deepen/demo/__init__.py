"""What growing buys, seen once: a base, a text that it hardly knows, several ways to learn it.

- ``recipe``: all numbers
- ``starts``: a pretrained base and its texts, or without a registry a base of the demo's own
- ``corpus``: the Python sources of this machine, as text
- ``material``: the files that a base of its own is made from
- ``samples``: what a model writes
- ``table``: who learned most and forgot least, in a sentence
- ``run``: all of it
"""
