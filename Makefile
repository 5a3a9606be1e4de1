# `make demo` and `make test` set everything up by themselves and can be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*)

.PHONY: demo test lint typecheck docs clean

demo: $(VENV)/.ready
	$(BIN)/jno-lora demo

test: $(VENV)/.ready
	$(BIN)/pytest -n 2 --dist loadgroup

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=src $(BIN)/lint-imports
typecheck: $(VENV)/.ready
	$(BIN)/basedpyright

docs: $(VENV)/.ready
	$(BIN)/pip install --quiet -e ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) dist build demo-output site

# One command, so that pip takes our own packages from here and not from an index.
$(VENV)/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[demo,test,lint]" $(foreach plugin,$(PLUGINS),-e $(plugin))
	touch $@
