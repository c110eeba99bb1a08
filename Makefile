# `make` alone lists the targets. All of them share one virtual environment, .venv, which the stamp
# file below keeps in step with pyproject.toml; nothing is installed outside this directory.
# Options: PYTHON=python3.12, ARGS="-k lock" (for test and bench), SEED=n or SEEDS=m (for sim),
# COMPACTION="--keys 100000 --seconds 30" (for the second half of bench).

PYTHON ?= python3
ARGS ?=
COMPACTION ?=
SEED ?=
SEEDS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo test verify fix bench sim clean

help: ## list these targets
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## three local servers at work; the leader is killed and the cluster recovers
	@$(BIN)/folkmoot demo

test: $(STAMP) ## run all tests
	$(BIN)/pytest -n 2 $(ARGS)

verify: $(STAMP) ## lint, format check, types, layering and purity, snippets of the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layering.py tests/docs

fix: $(STAMP) ## repair what ruff can, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure, beside the peers that are installed; then with a million keys
	$(BIN)/python -m benchmarks $(ARGS)
	$(BIN)/python -m benchmarks.compaction $(COMPACTION)

sim: $(STAMP) ## simulate a cluster: SEED=n replays one run, SEEDS=m runs many
	$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS))

setup: $(STAMP) ## make or refresh the virtual environment

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

# An environment that is already there is adopted. uvloop (the extra `fast`) is compiled where there
# is no wheel for the platform: without it everything still works, only slower.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "folkmoot needs Python 3.11 or newer: '$(PYTHON)' is missing or older."; \
	  echo "Install one, or name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing. On Debian and Ubuntu: sudo apt install python3-venv"; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "Making the virtual environment $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing folkmoot and its tools into $(VENV) ..."
	@$(PIP) install -e '.[dev,fast]' || { \
	  echo "Trying again without uvloop, which is optional ..."; $(PIP) install -e '.[dev]'; }
	@touch $@
