# Everything runs in .venv, made on first use with the versions of constraints.txt.
PYTHON ?= python3
# Threads that wait by spinning make everything many times slower on cores that are shared.
export OMP_WAIT_POLICY ?= PASSIVE
BIN := .venv/bin

.PHONY: demo demo-fast test test-slow check bench survey clean

demo: .venv/ready
	$(BIN)/deepen demo

demo-fast: .venv/ready
	$(BIN)/deepen demo runs/demo-fast --fast

# A process for each core, and a file's tests in one: they share what they make.
test: .venv/ready
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 8 --dist loadfile

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python benchmarks/expand.py
	$(BIN)/python benchmarks/training.py

survey: .venv/ready
	$(BIN)/python scripts/survey.py --write

# torch first and by itself: as a dependency it may come with gigabytes of CUDA libraries.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
