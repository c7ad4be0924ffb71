# From a bare clone: `make demo` or `make test`. Both set up .venv first, once.
#   PYTHON=python3.12     another interpreter, 3.11 or newer
#   TORCH_INDEX=URL       another build of PyTorch, such as the CPU one (see README.md)
#   ARGS="..."            passed on to the command
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow sanitize lint format types imports docs check clean

help:  ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## Train a small MoE beside its dense twin, and open the report
	@$(BIN)/mixtura demo $(ARGS)

test: $(READY)  ## Run the tests
	@$(BIN)/python -m pytest -n auto $(ARGS)

test-slow: $(READY)  ## Run the slow and the distributed tests
	@$(BIN)/python -m pytest -m "slow or distributed" $(ARGS)

sanitize:  ## Check the compiled kernels under AddressSanitizer and ThreadSanitizer
	@for kind in address thread; do \
	  cmake -S . -B build/sanitize-$$kind -DMIXTURA_SANITIZE=$$kind >/dev/null && \
	  cmake --build build/sanitize-$$kind -j 2 >/dev/null && \
	  echo "$$kind: $$(build/sanitize-$$kind/check_kernels && \
	    build/sanitize-$$kind/check_attention && \
	    build/sanitize-$$kind/check_packing)" || exit 1; \
	done

lint: $(READY)  ## Check style and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(READY)  ## Format, and mend what can be mended
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(READY)  ## Check types
	@$(BIN)/basedpyright

imports: $(READY)  ## Check the direction of imports
	@$(BIN)/lint-imports

docs: $(READY)  ## Build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint types imports docs test  ## Everything that CI checks

setup: $(READY)  ## Set up .venv without running anything

# The stamp is older than these after an edit of one, and then this runs again.
$(READY): pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mixtura needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@echo "Setting up $(VENV), once. PyTorch and the tools are downloaded: a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@echo "  1/2 PyTorch (the largest download)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	@echo "  2/2 Mixtura, what it needs, and the tools of its tests"
	@$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "Ready."

clean:  ## Remove .venv, the built documentation and caches; runs and corpora stay
	rm -rf $(VENV) site .hypothesis .pytest_cache .ruff_cache .import_linter_cache
	find src tests examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
