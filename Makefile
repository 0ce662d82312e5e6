# `make serve` and `make test` are all that a fresh machine needs; `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?= benchmarks/demo_model/checkpoint
ARGS   ?=
RUNNER ?= v1
VLLM   ?=

# Set-up leaves compiling to imports. Where these may not write, each process compiles PyTorch and vLLM anew: 12 s more.
unexport PYTHONDONTWRITEBYTECODE

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

# Python integration of a vLLM that has no CPU build here: `make test VLLM=0.33`, in an environment of its own. What is
# left out has nothing to do with vLLM, or needs kernels that the CPU build of another version does not have.
OTHER := build/vllm-$(strip $(VLLM))
OTHER_PYTEST := "$(OTHER)/bin/python" -m pytest -q -n 2 --dist loadgroup -p no:cacheprovider
ifeq ($(PART),quick)
OTHER_ENGINES := $(addprefix tests/engine/test_,kv_exact.py qwen2_5_vl.py)
OTHER_REST := tests/vllm_compat tests/server/test_budgets.py tests/server/openai tests/server/middleware tests/server/test_media.py
else
OTHER_ENGINES := $(addprefix tests/engine/test_,qwen2_5_vl.py qwen3_vl.py kv_exact.py kv_permutation.py) \
	tests/kv tests/visual
OTHER_REST := tests/vllm_compat tests/budget tests/cli tests/config tests/frontend tests/support tests/telemetry \
	$(addprefix tests/server/test_,budgets.py kv.py every_route.py routes.py media.py media_decode.py media_fetch.py) \
	$(addprefix tests/server/,media middleware openai) tests/test_policy.py tests/test_request.py
endif

.DEFAULT_GOAL := help
.PHONY: help serve test quick bench lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  Variables: MODEL, HOST, PORT, ARGS="--any-vllm-serve-argument ...", VENV, PYTHON,'
	@echo '  RUNNER=v2 for engine tests on Model Runner V2, VLLM=0.33 to serve with another vLLM (CUDA),'
	@echo '  or to test its Python integration'

serve: ## set up .venv and serve MODEL on HOST:PORT
	@$(SETUP)$(if $(strip $(VLLM)), --vllm "$(strip $(VLLM))")
	@exec "$(BIN)/vllm-prune" serve "$(MODEL)" --host "$(HOST)" --port "$(PORT)" $(ARGS)

ifeq ($(strip $(VLLM)),)
test: ## set up .venv, then lint, check types and run every test that needs no GPU
	@$(SETUP) --extra test
	@"$(BIN)/python" scripts/deploy_tools.py
	@"$(BIN)/python" scripts/get_chromium.py
	@"$(BIN)/python" scripts/build_playground.py --check
	@$(MAKE) --no-print-directory -j2 -O check $(if $(strip $(ARGS)),,coverage)
	@$(if $(strip $(ARGS)),"$(BIN)/python" -m pytest -q $(ARGS),$(PYTESTS))
else
.PHONY: test
test:
	@$(SETUP) --extra test
	@$(PYTHON) scripts/vllm_overlay.py --base "$(VENV)" --vllm "$(VLLM)" --venv "$(OTHER)"
	@status=0; began=$$(date +%s); \
	$(if $(strip $(ARGS)),$(OTHER_PYTEST) $(ARGS) || status=$$?;,\
		$(OTHER_PYTEST) $(OTHER_ENGINES) || status=$$?; \
		$(OTHER_PYTEST) --no-loadscope-reorder $(OTHER_REST) || status=$$?;) \
	echo "Python integration of vLLM $(VLLM): status $$status after $$(($$(date +%s) - began)) s" >&2; \
	exit $$status
endif

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
