# Hookpost. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check whole kafka nodes bench bench-kafka soak sim day mutants torture fuzz build sbom chart screenshots lint format types layers lock venv venv-dev clean

ARGS ?=
SEEDS ?= 20
SEED ?=
FUZZ_SECONDS ?= 300
# One more than the usual two cores, as tests of processes wait for these: 20 minutes of a slow machine, where two took 25.
PYTEST_WORKERS ?= 3
# Neighbours stay together, so that two of them that share a server do not start one each; whoever is done first helps out.
PYTEST_SPREAD := -n $(PYTEST_WORKERS) --dist worksteal

BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where bytecode may not be kept every process compiles all that it imports, 1.3 of 2.2 s, and the tests start hundreds of them.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  ARGS="…" is passed on to demo, test, bench, soak, day and torture; SEEDS=n or SEED=n to sim; PYTEST_WORKERS=n to test.'

demo: venv ## a server, a receiver and a producer on this machine (ARGS="--events 10000 --exit")
	@$(BIN)/hookpost demo $(ARGS)

test: venv-dev ## the tests (ARGS="tests/app -k config", ARGS="-n 0" for one process)
	@$(BIN)/pytest $(if $(filter -n% --numprocesses% -p%,$(ARGS)),,$(PYTEST_SPREAD)) $(ARGS)

check: lint types layers test ## all that has to pass before a change is merged

whole: venv-dev ## the long forms of tests that are run short: six hours at 100/s, a thousand kills, an fsync that fails (some ten minutes)
	@WHOLE_TESTS=1 $(BIN)/pytest tests/engine/test_outage.py tests/engine/test_isolation.py tests/engine/test_order.py tests/torture/test_fsync.py \
		tests/storage/test_retention.py -n 2 --durations=0 $(ARGS)

kafka: venv-dev ## tests/kafka, then all of tests/e2e and the torture rig with the journal in three brokers (ARGS="--minutes 2 --kills 20")
	@$(BIN)/pytest tests/kafka $(PYTEST_SPREAD)
	@$(BIN)/python -m tests.kafka $(BIN)/pytest tests/e2e $(PYTEST_SPREAD)
	@$(BIN)/python -m tests.torture --kafka $(ARGS)

bench-kafka: venv-dev ## the journal in Kafka beside a table, on three brokers of this machine (ARGS="--seconds 20")
	@$(BIN)/python -m tests.kafka $(BIN)/hookpost bench kafka $(ARGS)

bench: venv ## benchmarks (ARGS="bare e2e --seconds 15")
	@$(BIN)/hookpost bench $(ARGS)

soak: venv ## thirty days in a minute under load: sizes of tables and latencies, early and late (ARGS="--seconds 90")
	@$(BIN)/hookpost bench soak --seconds 60 $(ARGS)

sim: venv-dev ## the simulator: the worlds of SEEDS=20 seeds, or of the one SEED=n (ARGS="--fresh 5" for new ones)
	@$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

day: venv-dev ## a day of a billion deliveries, sampled: figures and plots in docs/scale, a quarter of an hour (ARGS="outage --seed 2")
	@$(BIN)/python -m tests.sim.day $(ARGS)

mutants: venv-dev ## faults put into the code, each of which the simulator must find (ARGS="name" for one)
	@$(BIN)/python -m tests.sim.mutants $(ARGS)

torture: venv-dev ## ten minutes and 100 kills on real processes (ARGS="--minutes 2 --kills 20 --seed 7")
	@$(BIN)/python -m tests.torture $(ARGS)

nodes: venv-dev ## several nodes on hosts of their own (root, namespaces) that come, go, die and are cut off (ARGS="--minutes 2 --seed 7")
	@$(BIN)/python -m tests.nodes $(ARGS)

fuzz: venv-dev ## requests made from the OpenAPI document, and every parser, five minutes each (FUZZ_SECONDS=n, ARGS="--seed 1")
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(ARGS)
	@timeout --foreground $(FUZZ_SECONDS) $(BIN)/pytest tests/fuzz/test_parsers.py tests/policy -q $(PYTEST_SPREAD) --hypothesis-profile fuzz || [ $$? = 124 ]

build: venv sbom ## the wheel and its bill of materials, in dist/
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

sbom: venv ## the bill of materials of what a user installs, CycloneDX in dist/sbom.cdx.json
	@$(BIN)/python scripts/sbom.py

chart: venv-dev ## render the Helm chart for the tests (needs Helm 3)
	@$(BIN)/python -m tests.deploy

screenshots: venv-dev ## make docs/screenshots anew (needs Chromium)
	@$(BIN)/python -m tests.browser.screenshots

lint: venv-dev ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: venv-dev ## let ruff put things in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: venv-dev ## mypy, strict
	@$(BIN)/mypy

layers: venv-dev ## import-linter: dependencies point down
	@$(BIN)/lint-imports

# The lock files hold for every supported Python on Linux, with hashes, and name no package index.
UV_VERSION := 0.13.9
COMPILE = $(BIN)/uv pip compile --system-certs --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' $(ARGS)
lock: venv-dev ## renew the lock files (ARGS="--upgrade" for newer versions)
	@$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	@$(COMPILE) pyproject.toml --output-file requirements.lock >/dev/null
	@$(COMPILE) pyproject.toml --extra otel --constraint requirements.lock --output-file requirements-otel.lock >/dev/null
	@$(COMPILE) pyproject.toml --extra kafka --constraint requirements.lock --output-file requirements-kafka.lock >/dev/null
	@$(COMPILE) pyproject.toml --group dev --constraint requirements.lock --output-file requirements-dev.lock >/dev/null
	@printf 'editables>=0.5\nhatchling>=1.27\n' | $(COMPILE) - --output-file requirements-build.lock >/dev/null

venv:
	@scripts/bootstrap run

venv-dev:
	@scripts/bootstrap dev

clean: ## remove the virtual environment and all caches (no data)
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
