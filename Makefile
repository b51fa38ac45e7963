# Everything runs in .venv, which the first target that needs it makes. Needed before: Python 3.11, make, pip.

PYTHON := $(or $(PYTHON),$(shell command -v python3.11 || command -v python3))
BIN    := .venv/bin
STAMP  := .venv/.stamp
# The tools of the environment (ninja, ray) must be found by what it starts.
export PATH := $(abspath $(BIN)):$(PATH)
# Stray settings of the caller's shell must not reach into the environment.
unexport PYTHONPATH PYTHONHOME

RECIPE  ?= jobs/recipes/demo.yaml
RUNS    ?= runs
PYTESTS ?= tests
# Test files that run side by side; much of a test is waiting for the processes of Ray to start.
TESTERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test check format bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m polysome.training.native
	@touch $@

install: $(STAMP) ## make .venv with everything, DeepSpeed's native operations included where a compiler is found

demo: $(STAMP) ## prepare, train three stages, evaluate, serve, ask (KEEP=1 leaves the server up)
	$(BIN)/polysome run $(RECIPE) $(if $(KEEP),serving.keep=true) --runs $(RUNS)

test: $(STAMP) ## all tests that need no GPU
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder -m "not gpu" $(PYTESTS)

check: $(STAMP) ## lint, format, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## write the format that check expects
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run every benchmark; results go to benchmarks/results/
	@set -e; for program in benchmarks/*.py benchmarks/*/*.py; do [ -e "$$program" ] || continue; echo "== $$program"; $(BIN)/python "$$program"; done

clean: ## remove the environment and caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
