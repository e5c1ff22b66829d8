# make demo: set up, and run the main job on a generated data set.  make test: set up, check, and run the tests.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?= -m "not gpu and not faults and not long"
PYTEST_WORKERS ?= 2

.PHONY: setup demo test check format clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@echo "setting up .venv: PyTorch is about 5 GB, this takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/feral demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest --numprocesses=$(PYTEST_WORKERS) --dist=loadfile $(PYTEST_ARGS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info
