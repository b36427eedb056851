# The two commands of the README are `make run` and `make test`; both make their own environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/tools/bin

.PHONY: run test lint parity benchmark proof audit locks clean

run: $(VENV)/run.stamp
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

# Known advisories on all that is pinned; where their data base cannot be had it says so, and fails.
audit: $(VENV)/tools.stamp
	$(TOOLS)/python -m pip_audit --strict --disable-pip $(foreach name,run dev tools torch-cuda,--requirement locks/$(name).txt)

# After a change of pyproject.toml or constraints.txt: versions and hashes anew.
locks: $(VENV)/tools.stamp
	$(TOOLS)/python locks

clean:
	rm -rf $(VENV) runs

# What others made is as it was when the locks were written, and comes as wheels: installing runs no code of theirs.
INSTALL := -m pip install --quiet --no-deps --only-binary :all: --require-hashes

# A stamp is older than what it depends on exactly when the environment must be brought up to date.
$(VENV)/run.stamp: pyproject.toml locks/run.txt locks/torch-cpu.txt locks/torch-cuda.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) --requirement locks/torch-cpu.txt 2> /dev/null || \
	  $(BIN)/python $(INSTALL) --requirement locks/torch-cuda.txt
	$(BIN)/python $(INSTALL) --requirement locks/run.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

$(VENV)/dev.stamp: locks/dev.txt $(VENV)/run.stamp
	$(BIN)/python $(INSTALL) --requirement locks/dev.txt
	$(BIN)/python -m pip check
	touch $@

$(VENV)/tools.stamp: locks/tools.txt | $(TOOLS)/python
	$(TOOLS)/python $(INSTALL) --requirement locks/tools.txt
	touch $@

%/bin/python:
	$(PYTHON) -m venv $*
