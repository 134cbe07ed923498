# Everything starts from a checkout with git, make and Python 3.11: each target sets itself up.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Byte code is written at first import; compiling all of torch ahead would take as long as the rest.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
# Two test processes of one thread each; `make test WORKERS=0` runs in one process.
WORKERS ?= 2
THREADS ?= 1
# Another torch than that of requirements.lock: a version, or `newest`.
TORCH ?=
ARGS ?=
MINUTES ?= 60

# Byte code is kept whatever the environment says: the tests start many processes, each of which would
# compile torch anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help venv demo docs test fuzz faults lint format bench dist clean

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## create .venv with the exact versions of requirements.lock

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"upfeat needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}; name another one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint requirements.lock torch
	$(PIP) --no-deps -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	$(if $(TORCH),$(PIP) --upgrade torch$(if $(filter newest,$(TORCH)),,==$(TORCH)) torchvision)
	@touch $@

demo: $(STAMP)  ## upsample a photo's features, offline, and say where the picture is
	$(BIN)/python tools/demo.py --out demo_out $(ARGS)

test: $(STAMP)  ## run the tests and doctests (ARGS="-k name" picks some)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

fuzz: $(STAMP)  ## random calls of every method for an hour (MINUTES=5: less) and what was found
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m tests.fuzz.campaign --minutes $(MINUTES) $(ARGS)

faults: $(STAMP)  ## damaged and malicious files, kills, full and read-only disks, in large numbers
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m tests.faults.campaign $(ARGS)

lint: $(STAMP)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## let ruff sort, fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## build the documentation site in docs/_build/html; its tutorials run
	UPFEAT_OFFLINE=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(STAMP)  ## time and memory of every method beside the plain implementation
	$(BIN)/upfeat bench --against benchmarks/plain.py --out benchmarks/results/local.json $(ARGS)

dist: $(STAMP)  ## build wheel and sdist, and try the wheel in a clean environment (ARGS=--install: with its dependencies from the index)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python tools/check_dist.py dist $(ARGS)

clean:  ## remove what the targets made
	rm -rf $(VENV) dist demo_out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
