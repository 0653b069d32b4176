# make demo: install, then sanitize a model that recites an invented clinic. make test: the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint types fmt check

demo: .venv/installed
	$(BIN)/sani demo

test: .venv/installed
	$(BIN)/pytest -q -m "not long"

test-all: .venv/installed
	$(BIN)/pytest -q

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

fmt: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test-all

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
