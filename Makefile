# Everything below works on a fresh clone: `make setup` is made first wherever it is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The theme would print an advertisement.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.PHONY: help setup demo test test-slow check docs wheel

help:
	@echo "make demo        tune, fold, export, time and serve two tasks (under 5 minutes on 2 cores)"
	@echo "make test        run the tests but the slow ones (under 12 minutes on 2 cores)"
	@echo "make test-slow   run those: new environments, the README's commands, the service's benchmark"
	@echo "make check       ruff, mypy, the directions of imports, and whether the docs can be built"
	@echo "make docs        build the documentation into site/"
	@echo "make wheel       build the source archive, and the wheel of it, into dist/"
	@echo "make setup       make $(VENV); the others do it themselves"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "==> installing the pinned packages into $(VENV) (about 6 GB, one to three minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[train,export,serve,dev,docs]'
	@touch $@

demo: setup
	$(BIN)/python -m benchmarks.demo

# A test file is one process's, so that few make the same fixtures, and torch leaves the other cores to the others. In
# their own order: files of few tests, which would come last, are the long ones.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

test: setup
	$(PYTEST) -m 'not slow'

test-slow: setup
	$(PYTEST) -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py
	$(MKDOCS) build

docs: setup
	$(MKDOCS) build
	@echo "open site/index.html, or run: $(BIN)/python -m http.server --directory site"

# The wheel is built of the unpacked source archive: so the archive is whole, and nothing of an earlier build gets in.
wheel: setup
	$(BIN)/python -m uv build --no-build-isolation --offline --python $(BIN)/python --out-dir dist .
