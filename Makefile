# Two commands from nothing: `make demo` and `make test`. Both create .venv here first, and are quick when it exists.
# PYTHON=python3.12 picks the interpreter, CONSTRAINTS=cpu|cuda the pins, TORCH=2.11.0 another torch, ARGS="-k text"
# goes to pytest, JOBS=4 runs tests in four processes, not one per core.
# `make test-gpu ARGS="-n 8 --budget 500 --done gpu.jsonl -k rsa"`: in processes, until the time is over; again: the rest.
# ARGS="-m exhaustive" runs what a plain run covers in part: every named kernel compiled for every architecture.

PYTHON ?= python3
JOBS ?= $(shell unset OMP_NUM_THREADS; n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); echo $$((n < 16 ? n : 16)))
ARGS ?=
export PYTHON CONSTRAINTS TORCH
BIN := .venv/bin

.PHONY: help demo test test-gpu lint setup setup-dev clean

help:
	@echo "make demo      set up and tune two variants on real input"
	@echo "make test      set up, lint, and run the tests"
	@echo "make test-gpu  the tests that need a GPU"
	@echo "make lint      ruff and mypy"
	@echo "make clean     remove the virtual environment and every cache in the checkout"

setup:
	@scripts/setup.sh run

setup-dev:
	@scripts/setup.sh dev

demo: setup
	$(BIN)/python examples/demo.py

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-gpu: setup-dev
	$(BIN)/python -m pytest -m gpu -p sparsec.testing.budget $(ARGS)

lint: setup-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
