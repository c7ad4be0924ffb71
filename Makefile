# From a bare clone: `make demo` or `make test`. Both set up .venv first, once.
#   PYTHON=python3.12     another interpreter, 3.11 or newer
#   TORCH_INDEX=URL       another build of PyTorch, such as the CPU one (see README.md)
#   ARGS="..."            passed on to the command
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TOOLS := build/tools
define NEW_ENOUGH
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mixtura needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow sanitize lint format types imports docs check lock \
  test-ranges wheel clean FORCE

help:  ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
	    build/sanitize-$$kind/check_gguf && \
	    build/sanitize-$$kind/check_packing && \
	    build/sanitize-$$kind/check_recurrent)" || exit 1; \
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

# The stamp is older than these after an edit of one, and then this runs again, as it does where
# PyTorch is asked for from another index than before.
ifneq ($(TORCH_INDEX),)
ifneq ($(TORCH_INDEX),$(shell cat $(VENV)/torch-index 2>/dev/null))
$(READY): FORCE
endif
endif
FORCE:

$(READY): pyproject.toml constraints.txt CMakeLists.txt \
  $(filter-out native/tests/%,$(wildcard native/*/*))
	@$(NEW_ENOUGH)
	@$(PYTHON) tools/set_up.py $(VENV) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

$(TOOLS)/ready: constraints.txt
	@$(NEW_ENOUGH)
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install -q --disable-pip-version-check \
	  --constraint constraints.txt --upgrade pip
	@$(TOOLS)/bin/python -m pip install -q --disable-pip-version-check \
	  --constraint constraints.txt --group tools
	@touch $@

test-ranges: $(TOOLS)/ready  ## Run the tests with the oldest and the newest versions allowed
	@$(TOOLS)/bin/python tools/ranges.py $(TOOLS)/bin/uv \
	  $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) -n auto $(ARGS)

wheel: $(TOOLS)/ready  ## Build wheels into dist/; ARGS=--test tries them, ARGS=--everywhere
	@$(TOOLS)/bin/python tools/wheels.py $(TOOLS)/bin \
	  $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) $(ARGS)

lock: $(TOOLS)/ready  ## Renew the lock; TORCH=VERSION moves PyTorch too
	@$(TOOLS)/bin/python tools/lock.py $(TOOLS)/bin/uv $(if $(TORCH),--torch $(TORCH))

clean:  ## Remove .venv, the built documentation and caches; runs and corpora stay
	rm -rf $(VENV) site .hypothesis .pytest_cache .ruff_cache .import_linter_cache
	find src tests examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
