# Every target makes what it needs: a fresh machine has python3 (3.11 to 3.13), pip and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Quiet third parties, not ourselves.
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export MLFLOW_DISABLE_TELEMETRY = true
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: help setup quickstart test test-slow test-cluster test-browser lint bench clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

# Two stamps, so that users of the quick start do not wait for the developers' tools.
$(VENV)/.user: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing heliostat into $(VENV) (a minute or two)"
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.user
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(VENV)/.dev  ## install heliostat and the developers' tools into .venv

quickstart: $(VENV)/.user  ## train SimCLR on handwritten digits in two Ray workers, and judge it
	@$(BIN)/heliostat run jobs/representation/simclr-digits.yaml

test: $(VENV)/.dev  ## the tests, without the slow ones
	$(BIN)/python -m pytest -m "not slow and not cluster and not accelerator and not browser"

test-slow: $(VENV)/.dev  ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not cluster and not accelerator and not browser"

test-browser: $(VENV)/.dev  ## the comparison page and MLflow's pages in headless Chromium, which must be installed
	$(BIN)/python -m pytest -m browser

test-cluster: $(VENV)/.dev  ## the tests that start several Ray nodes on this machine, which take many minutes
	$(BIN)/python -m pytest -m cluster

lint: $(VENV)/.dev  ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## measure speed against bare loops and peers; writes build/bench.json
	$(BIN)/python tests/benchmarks/run.py

clean:  ## remove what the targets made, but no runs
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
