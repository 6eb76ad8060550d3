# Everything runs from a virtual environment that the first target makes; PYTHON chooses the
# interpreter (3.10 or newer). A stamp per set of packages keeps a second run from installing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard aigtool/inference/*.c)
export HF_HUB_OFFLINE := 1

# $(call install,requirement): through uv where it can be had, else through pip. Both leave byte code,
# without which each start takes some ten seconds more where Python may not write it itself.
define install
	@if $(BIN)/python -m pip install --quiet uv 2>/dev/null; then \
	  $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '$(1)'; \
	else \
	  $(BIN)/python -m pip install --quiet --editable '$(1)'; \
	fi
endef

.PHONY: install install-dev demo test lint clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is older than 3.10; name a newer one: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/python
	$(call install,.[dev])
	@touch $@ $(VENV)/.installed

# The whole way on the embedded digits, into demo/.
demo: $(VENV)/.installed
	$(BIN)/aigtool demo --out demo --force

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo build *.egg-info aigtool/inference/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
