# make demo   install what the demo needs into .venv and run it, offline once installed
# make test   install everything into .venv and run the tests
# make check  format, lint, types and the direction of imports
# make bench  speed and memory, as ratios against a limit or a peer measured in the same run

PYTHON ?= python3
BIN := .venv/bin
# The constraints hold in pip's build environment too, and pip does not look for a newer self.
INSTALL := PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --editable

.PHONY: demo test check bench fast clean

demo: .venv/.demo
	$(BIN)/featpipe demo --out demo-run

test: .venv/.all
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

fast: .venv/.all
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

check: .venv/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.all
	$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

clean:
	rm -rf .venv demo-run

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) '.[extract,report]'
	touch $@

.venv/.all: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) '.[all]'
	touch $@ .venv/.demo
