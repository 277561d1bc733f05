# Every target works in a fresh clone: the first one makes .venv and installs what constraints.txt pins.
#   make run PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"    a Linux machine without a GPU

PYTHON ?= python3
PIP_FLAGS ?=
RUNS ?= runs
WHEELS ?=
VENV = .venv
BIN = $(VENV)/bin
COMPAT = .venv-compat
COMPAT_TRANSFORMERS = 5.17.0
export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONDONTWRITEBYTECODE  # each of the processes that tests start would compile torch and transformers anew

.PHONY: help install run test suite lint compat matrix shipped gpu-check docs figures notebooks

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed  ## make .venv

run: install  ## five strategies on the embedded model, offline
	$(BIN)/python run.py +experiment=first_look runs=$(RUNS)

test: install  ## lint, types, tests, notebooks
	$(MAKE) --jobs 2 lint suite

suite: install
	$(BIN)/python -m pytest -n 2

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compat: $(COMPAT)/installed  ## the tests with the oldest transformers that is supported
	$(COMPAT)/bin/python -m pytest -n 2

matrix: install  ## every combination of a strategy's parts: what is legal runs, what is not says why
	$(BIN)/python -m tests.support.matrix

shipped: install  ## what comes with the embedded model, made again; every oracle on every method and mutant
	$(BIN)/python -m pytest -n 2 -m shipped

gpu-check:  ## device tests and two tables on a GPU, with PYTHON's own packages; WHEELS=folder adds Hydra's
	if [ -n "$(WHEELS)" ]; then \
		$(PYTHON) -m pip install --quiet --no-index --find-links "$(WHEELS)" --no-deps --target build/gpu-check \
			hydra-core omegaconf antlr4-python3-runtime; fi
	PYTHONPATH=src:build/gpu-check $(PYTHON) -m pytest -m gpu -o addopts= -p no:cacheprovider
	PYTHONPATH=src:build/gpu-check $(PYTHON) -m benchmarks.gpu_check --out $(RUNS)/gpu_check
	PYTHONPATH=src:build/gpu-check $(PYTHON) -m benchmarks.gpu_packed

docs: install  ## the pages that are made of the configuration
	mkdir -p docs
	$(BIN)/kvbench list --markdown > docs/catalogue.md
	$(BIN)/python -m kvbench.cli.ledger methods > docs/methods.md
	$(BIN)/python -m kvbench.cli.ledger compositions > docs/compositions.md
	$(BIN)/python -m kvbench.cli.ledger ceilings > docs/ceilings.md
	$(BIN)/python -m kvbench.cli.ledger columns > docs/columns.md

figures: install  ## README's figure again, from the benchmark's committed rows
	$(BIN)/python -m benchmarks.budget_curve --out benchmarks/results/budget_curve --draw

notebooks: install  ## notebooks/executed/: all of them with their figures, from RUNS
	mkdir -p notebooks/executed
	cp notebooks/*.ipynb notebooks/executed
	KVBENCH_RUNS="$(abspath $(RUNS))" $(BIN)/jupyter execute --inplace --allow-errors notebooks/executed/*.ipynb

# --no-compile: most of what torch and transformers bring is never imported
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]' --constraint constraints.txt $(PIP_FLAGS)
	touch $@

$(COMPAT)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(COMPAT)
	sed 's/^transformers==.*/transformers==$(COMPAT_TRANSFORMERS)/' constraints.txt > $(COMPAT)/constraints.txt
	$(COMPAT)/bin/python -m pip install --quiet --no-compile --editable '.[dev]' --constraint $(COMPAT)/constraints.txt $(PIP_FLAGS)
	touch $@
