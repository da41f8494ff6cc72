PYTHON ?= python3
CONFIG ?= recipes/configs/pocket/purify.yaml
THREADS ?= $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count() or 1))")
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
LAUNCH = $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $(THREADS)

.DEFAULT_GOAL := help
.PHONY: help purify test long doctest lint types docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

purify: .venv/installed  ## purify a poisoned CLIP (the pocket world, or CONFIG=path.yaml)
	$(LAUNCH) recipes/purify.py --config $(CONFIG)

test: .venv/installed-dev  ## run the tests, offline
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(THREADS) --dist loadfile --no-loadscope-reorder -m "not long"

long: .venv/installed-dev  ## run the notebook and other tests that take minutes, offline
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m long

doctest: .venv/installed-dev  ## run the examples in docstrings
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q --doctest-modules peft_cbpt

lint: .venv/installed-dev  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev  ## check types
	$(BIN)/mypy

docs: .venv/installed-docs  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean:  ## remove the environment and everything built
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv: some minutes, most of them torch"
	$(INSTALL) -e ".[purify,attacks]"
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e ".[dev]"
	$(INSTALL) --no-deps clip-anytorch  # OpenAI's model code and vocabulary to test against; it asks for torchvision
	@touch $@ .venv/installed

.venv/installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e ".[docs]"
	@touch $@ .venv/installed
