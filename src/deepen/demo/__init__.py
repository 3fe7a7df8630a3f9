"""The paper's whole experiment in miniature, offline: a base, every method, one budget, a report.

- ``recipe``: all numbers
- ``corpus``: the Python sources of this machine, as text
- ``questions``: fine-tuning rows and a multiple-choice task, made of the same text
- ``material``: the files that the stages read: texts, task, tokenizer, an untrained model
- ``run``: all of it
"""
