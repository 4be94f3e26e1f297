# Each command works alone on a fresh machine with Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes; `logical` is one for each core.
JOBS ?= logical
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-fast lint docs clean

demo: $(VENV)/installed ## set up, then run the whole loop on the bundled student
	$(BIN)/spot demo

test: $(VENV)/installed-dev ## set up, then run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-fast: $(VENV)/installed-dev ## the tests that take no whole run, process or training: under two minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

lint: $(VENV)/installed-dev ## format, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

docs: $(VENV)/installed-dev ## write docs/cli.md from the real --help
	$(BIN)/python docs/make_cli.py

clean: ## remove the environment and what tools leave
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis src/*.egg-info

# torch first and by itself, at the pinned version. Where pip would bring a CUDA build of several gigabytes and a CPU build
# is wanted, point pip at one (PIP_FIND_LINKS, PIP_INDEX_URL) before calling make.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing (about a minute and a half) ..."
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable ".[dev]"
	touch $@
