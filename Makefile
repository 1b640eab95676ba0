# `make test` and `make demo` each work alone in a fresh clone: they build .venv first.
PYTHON ?= python3
# Extra arguments: make test ARGS="-m slow", make demo ARGS=--keep
ARGS ?=

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
CREATED := .venv/.created
DEMO := .venv/.demo
DEV := .venv/.dev
PIP := "$(BIN)/python" -m pip install --disable-pip-version-check --quiet -c constraints.txt
# The ci scripts use the environment that this variable names.
RUN := VIRTUAL_ENV="$(VENV)"

.DEFAULT_GOAL := help
.PHONY: help demo test lint format benchmark clean

help:  ## Show these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO)  ## Run the main job over three sites on this machine
	@$(RUN) "$(BIN)/federated-dask" demo $(ARGS)

test: $(DEV)  ## Run the static checks and the tests
	@$(RUN) ci/test $(ARGS)

lint: $(DEV)  ## Run the static checks only
	@$(RUN) ci/lint

format: $(DEV)  ## Rewrite the source in the project's format
	@"$(BIN)/ruff" check --fix --exit-zero
	@"$(BIN)/ruff" format

benchmark: $(DEV)  ## Run the benchmarks and print their table
	@$(RUN) "$(BIN)/python" -m benchmarks $(ARGS)

clean:  ## Remove the environment, builds and caches
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted step runs again.
$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Creating .venv"
	@$(PYTHON) -m venv --clear "$(VENV)"
	@touch $@

$(DEMO): pyproject.toml constraints.txt | $(CREATED)
	@echo "Installing federated-dask[demo] into .venv"
	@$(PIP) -e '.[demo]'
	@touch $@

# What the demo needs is part of it.
$(DEV): pyproject.toml constraints.txt | $(CREATED)
	@echo "Installing federated-dask[dev] into .venv"
	@$(PIP) -e '.[dev]'
	@touch $(DEMO) $@
