# The two commands of the README are `make run` and `make test`; both make their own environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint parity benchmark proof clean

run: $(VENV)/train.stamp
	$(BIN)/perceivers train digits --out runs/digits

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(VENV)/dev.stamp
	$(BIN)/python tests/parity.py

benchmark: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks

proof: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

clean:
	rm -rf $(VENV) runs

# A stamp is older than what it depends on exactly when the environment must be brought up to date.
$(VENV)/%.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
