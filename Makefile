# make demo: install, then sanitize a model that recites an invented clinic. make test: the tests.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/pytest -q -n logical --maxprocesses 8 --dist loadfile

.PHONY: demo test test-long test-all lint types fmt check docs site

demo: .venv/installed
	$(BIN)/sani demo

test: .venv/installed
	$(PYTEST) -m "not long"

test-long: .venv/installed
	$(PYTEST) --dist worksteal -m long

test-all: .venv/installed
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

fmt: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test-all

docs: .venv/installed
	$(BIN)/python docs/generate.py

site: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
