# `make demo` and `make test` need Python 3.10+ with venv, and make; everything else is installed
# into .venv. Another interpreter: `make test PYTHON=python3.12`. Fewer test processes: `JOBS=0`.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
MODEL ?= cnn
# Where tensorrt-rtx has no wheel for this system: EXTRAS=dev. Demo and tests then skip the engine.
EXTRAS ?= dev,rtx

BIN := $(VENV)/bin
# Written last, and only when the installation succeeded: an interrupted one is done again.
INSTALLED := $(VENV)/.installed

# GitHub, GitLab and most other CI services set CI; there the log is all that anybody sees.
ifneq ($(CI),)
PYTEST_OPTIONS ?= --color=no --durations=10 -rfEs
else
PYTEST_OPTIONS ?=
endif

.PHONY: help install demo test test-lowest lint format docs clean

help:
	@echo "make demo     compile a trained model to 2:4 INT8 and build a TensorRT-RTX engine (MODEL=cnn|vit)"
	@echo "make test     lint, types and the test suite"
	@echo "make test-lowest  the test suite with the lowest allowed versions (LOWEST=python3.10)"
	@echo "make lint     ruff and mypy only"
	@echo "make format   rewrite the sources in the house format"
	@echo "make docs     regenerate the generated pages of docs/"
	@echo "make install  create $(VENV) and install the project into it, editable"
	@echo "make clean    remove $(VENV), caches and outputs"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("onnx24 needs Python 3.10 or later; " + sys.executable + " is " + sys.version.split()[0] + ". Choose another: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing onnx24 [$(EXTRAS)] into $(VENV) (about 500 MB are downloaded the first time) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
	    --editable '.[$(EXTRAS)]' > $(VENV)/pip.log 2>&1 || { tail -n 30 $(VENV)/pip.log >&2; \
	    echo "installation failed; all of pip's output: $(VENV)/pip.log." \
	         "If only tensorrt-rtx has no wheel here: make EXTRAS=dev $(MAKECMDGOALS)" >&2; exit 1; }
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python fixtures/demo.py $(MODEL)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Last of all pytest, so that its closing line is the last of the log.
test: lint
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --maxprocesses=8 --dist=worksteal $(PYTEST_OPTIONS)

# The lowest versions that pyproject.toml allows, on the oldest Python: its bounds are no guesses.
LOWEST ?= python3.10

test-lowest:
	$(LOWEST) -m venv .venv-lowest
	$(LOWEST) tests/packaging/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --disable-pip-version-check --quiet \
	    --constraint .venv-lowest/constraints.txt --editable '.[fast,sign]' \
	    filecheck hypothesis jsonschema pytest pytest-xdist scikit-learn
	.venv-lowest/bin/python -m pytest --numprocesses=$(JOBS) --maxprocesses=8 --dist=worksteal $(PYTEST_OPTIONS)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	$(BIN)/python -m onnx24.testing.docs

clean:
	rm -rf $(VENV) .venv-lowest build dist out onnx24.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
