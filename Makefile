# `make serve` and `make test` are all that a fresh machine needs; `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?= benchmarks/demo_model/checkpoint
ARGS   ?=
RUNNER ?= v1

BIN   := $(VENV)/bin
# `exec`, as a shell in between would keep the signals that make hands on.
SETUP := exec $(PYTHON) scripts/setup_env.py --venv "$(VENV)"

# Engines in the test's own process set variables that a server would inherit, so the two do not meet in a process.
ENGINES := tests/engine tests/kv tests/visual
PYTEST := "$(BIN)/python" -m pytest -q -n 2 --dist loadgroup
PYTESTS = status=0; \
	$(PYTEST) $(ENGINES) || status=$$?; \
	$(PYTEST) --runner v2-mechanisms tests/engine || status=$$?; \
	$(PYTEST) --no-loadscope-reorder $(ENGINES:%=--ignore=%) || status=$$?; \
	exit $$status
# Which of vLLM's model runners the engine tests run on is decided when vLLM is imported.
ifeq ($(RUNNER),v2)
PYTESTS = exec $(PYTEST) --runner v2 tests/engine
endif

.DEFAULT_GOAL := help
.PHONY: help serve test quick bench lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  Variables: MODEL, HOST, PORT, ARGS="--any-vllm-serve-argument ...", VENV, PYTHON,'
	@echo '  RUNNER=v2 for engine tests on Model Runner V2'

serve: ## set up .venv and serve MODEL on HOST:PORT
	@$(SETUP)
	@exec "$(BIN)/vllm-prune" serve "$(MODEL)" --host "$(HOST)" --port "$(PORT)" $(ARGS)

test: ## set up .venv, then lint, check types and run every test that needs no GPU
	@$(SETUP) --extra test
	@"$(BIN)/python" scripts/deploy_tools.py
	@"$(BIN)/python" scripts/get_chromium.py
	@"$(BIN)/python" scripts/build_playground.py --check
	@$(MAKE) --no-print-directory check
	@$(if $(strip $(ARGS)),,$(MAKE) --no-print-directory coverage)
	@$(if $(strip $(ARGS)),"$(BIN)/python" -m pytest -q $(ARGS),$(PYTESTS))

# Without the folder that starts engines, as importing it takes long; the markers are those of tests/engine_guard.py.
quick: ## set up .venv and run what needs no engine, in under a minute
	@$(SETUP) --extra test
	@"$(BIN)/python" scripts/deploy_tools.py
	@$(PYTEST) --ignore=tests/engine -m 'not engine and not slow and not gpu' $(ARGS)

# What decides about budgets has no line that no test runs.
COVERED := budget support config policy
.PHONY: coverage
coverage:
	@"$(BIN)/python" -m pytest -q tests/budget tests/config tests/support tests/test_policy.py -m 'not slow' \
		$(COVERED:%=--cov=vllm_prune.%) --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=100

lint: ## set up .venv, then lint and check types
	@$(SETUP) --extra test
	@$(MAKE) --no-print-directory check

.PHONY: check
check:
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .
	@"$(BIN)/mypy"

bench: ## set up .venv and run the quick benchmark on the bundled model
	@$(SETUP) --extra bench
	@exec "$(BIN)/python" -m benchmarks.speed --quick $(ARGS)

.PHONY: quality
quality: ## set up .venv and measure accuracy over strategies and budgets, about ten minutes; a second run goes on
	@$(SETUP) --extra bench
	@exec "$(BIN)/python" -m benchmarks.quality --n 24 --store build/quality $(ARGS)

clean: ## remove what set-up, builds and tests left behind, .venv included
	rm -rf "$(VENV)" build dist playground/node_modules ./*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
