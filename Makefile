# Everything runs in .venv, made on first use with the versions of constraints.txt.
PYTHON ?= python3
# Threads that wait by spinning make everything many times slower on cores that are shared.
export OMP_WAIT_POLICY ?= PASSIVE
BIN := .venv/bin

.PHONY: demo demo-fast test test-slow test-faults test-lowest test-highest fuzz audit check bench survey clean

demo: .venv/ready
	$(BIN)/deepen demo

demo-fast: .venv/ready
	$(BIN)/deepen demo runs/demo-fast --fast

# A process for each core, and a file's tests in one: they share what they make. Which file comes
# first, tests/conftest.py says.
SHARED := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
test: .venv/ready
	$(BIN)/python -m pytest -m "not slow and not faults" $(SHARED)

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

# Kills, full disks, second runs: their counts go into docs/reliability.md.
test-faults: .venv/ready
	DEEPEN_TALLY=1 $(BIN)/python -m pytest -m faults

# The tests against the lowest versions that pyproject.toml admits, and the highest; warnings of
# libraries that are older than others beside them are none of ours. TORCH is the one build that is
# not chosen: as it is spelled, and so that no gigabytes of CUDA come, the CPU's.
TORCH ?= 2.13.0
TESTS ?= tests
test-lowest test-highest: test-%: .venv-%/ready
	.venv-$*/bin/python -m pytest -m "not slow and not faults" -W ignore::DeprecationWarning \
	  $(SHARED) $(TESTS)

.venv-lowest/ready: RESOLUTION := lowest-direct
.venv-highest/ready: RESOLUTION := highest
.venv-lowest/ready .venv-highest/ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution $(RESOLUTION) \
	  'torch==$(TORCH)' --editable '.[dev]'
	touch $@

# Known vulnerabilities in constraints.txt; it asks a service for them.
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# Malformed inputs by the thousand, some 8 minutes of processor time; ended, it goes on where it was.
fuzz: .venv/ready
	PYTHONPATH=tests $(BIN)/python -m fuzz.run --write

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
	rm -rf .venv .venv-* build dist *.egg-info
