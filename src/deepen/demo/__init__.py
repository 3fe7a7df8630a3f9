"""The whole path in a few minutes, offline: train a small base, grow it by every method, compare.

In the order of the path:

- ``recipe``: all numbers
- ``corpus``: the Python sources of this machine, as text
- ``tokens``: a tokenizer of their own, and packed sequences
- ``training``: a plain training loop, and perplexity
- ``base``: the base checkpoint, trained once and kept
- ``contest``: one contestant: grown, verified, scored, trained on, scored again
- ``results``: what is recorded, and the table made of it
- ``display``: progress bars
- ``run``: all of it
"""
