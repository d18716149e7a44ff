# Reelfarm: one entry point for people and for CI. `make` alone says what there is.
# Needs make and Python 3.11, 3.12 or 3.13 with its venv module; everything else goes into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
UV ?= uv
# cpu for any machine, gpu for NVIDIA accelerators: make film LOCK=gpu
LOCK ?= cpu
# Processes that share the tests, file by file: most tests wait for something else than this machine's cores.
TEST_PROCESSES ?= 2
LOGLINE ?= A red boat crosses the sea at night, looking for the star it lost

VENV := .venv
BIN := $(VENV)/bin
LOCKS := deploy/locks
PYTEST := $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

# A stamp is named by the content that it stands for: a second run installs nothing, a changed lock installs the change.
sum = $(firstword $(shell cat $(1) 2>/dev/null | sha256sum))
MADE := $(VENV)/.made
NEEDS := $(VENV)/.needs-$(LOCK)-$(call sum,$(LOCKS)/$(LOCK).txt)
FARM := $(VENV)/.farm-$(call sum,pyproject.toml)
TOOLS := $(VENV)/.tools-$(call sum,$(LOCKS)/test.txt)

PROMETHEUS := $(VENV)/.prometheus

.PHONY: help film test unit live e2e chaos-sweep chaos mutants fuzz sdks s3 bench scale check house-eval house-train writer-eval \
  install install-tests lock clean

help: ## what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

film: override export LOGLINE := $(value LOGLINE)
film: $(FARM) ## render a film into film/: make film LOGLINE="A yellow fish ..."
	@$(BIN)/farm render "$$LOGLINE" --out film

test: $(FARM) $(TOOLS) $(PROMETHEUS) ## unit, live and e2e tests
	@$(PYTEST)

unit: $(FARM) $(TOOLS) $(PROMETHEUS) ## the tests of a desk, in seconds
	@$(PYTEST) tests/unit

live: $(FARM) $(TOOLS) $(PROMETHEUS) ## tests on Ray, databases, engines
	@$(PYTEST) tests/live

e2e: $(FARM) $(TOOLS) ## tests of what the README shows
	@$(PYTEST) tests/e2e

chaos-sweep: $(FARM) $(TOOLS) ## the golden job under every fault at every point
	@$(BIN)/python -m tests.chaos.sweep

chaos: $(FARM) $(TOOLS) ## a live farm under a storm of faults: make chaos SEED=7, then long runs of the property tests and of HTTP
	@$(BIN)/python -m tests.chaos.storm $(if $(SEED),--seed $(SEED))
	@REELFARM_TEST_PROFILE=chaos $(BIN)/python -m pytest -q \
	  tests/live/test_ledger_against_model_long.py tests/live/test_standing_farm.py

mutants: $(FARM) $(TOOLS) ## plant seeded defects, one at a time, and see the tests catch them
	@$(BIN)/python -m tests.chaos.mutants

fuzz: $(FARM) $(TOOLS) ## Schemathesis over every route of the OpenAPI document: make fuzz CASES=2000 SEED=7
	@$(BIN)/python -m tests.fuzz $(if $(CASES),--cases $(CASES)) $(if $(SEED),--seed $(SEED))

sdks: $(FARM) $(TOOLS) ## OpenAI's client in its oldest, a middle and its newest version, each in an environment of its own
	@$(BIN)/python -m tests.sdks.matrix

s3: $(FARM) $(TOOLS) ## a farm on a real S3 server: `aws s3 ls` sees its clips, and it survives a minute without the server
	@[ -x $(VENV)/aws/bin/aws ] || { $(PYTHON) -m venv $(VENV)/aws && $(VENV)/aws/bin/pip install -qq awscli; }
	@REELFARM_AWS=$(CURDIR)/$(VENV)/aws/bin/aws $(BIN)/python -m pytest -q tests/live/test_s3_film.py
	@$(BIN)/python -m tests.s3_storm

bench: $(FARM) $(TOOLS) ## measurements, as ratios to the plain libraries
	@$(BIN)/python -m pytest tests/bench -s

scale: $(FARM) $(TOOLS) ## how the dispatcher grows from 1,000 to 100,000 ready tasks, on PostgreSQL
	@$(BIN)/python -m tests.bench.scale

check: $(FARM) $(TOOLS) ## format, lint, types, imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

house-eval: $(FARM) ## judge the house video model on combinations it has never seen
	@$(BIN)/python -m pipelines.house.evaluate --out out/house-eval

house-train: $(FARM) ## train the house video model into out/house, or go on with it
	@$(BIN)/python -m pipelines.house.latents --out out/house/data
	@$(BIN)/python -m pipelines.house.train --data out/house/data --out out/house/denoiser \
	  $$([ ! -f out/house/denoiser/state.pt ] || echo --resume)
	@$(BIN)/python -m pipelines.house.refine --weights out/house/denoiser/weights --out out/house/refined

writer-eval: $(FARM) ## judge the house writer on twenty loglines
	@$(BIN)/python -m pipelines.writer_eval

install: $(FARM) ## .venv with the farm in it
install-tests: $(FARM) $(TOOLS) ## and with the tools of its tests

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "Reelfarm needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is not one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Making $(VENV)"; \
	  $(PYTHON) -m venv $(VENV) >/dev/null || { \
	    echo "Could not make $(VENV). On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	fi
	@touch $@

# An install that was cut off leaves packages without a RECORD, which pip takes for whole: they go before it runs.
define mend
for info in $(VENV)/lib/python3*/site-packages/*.dist-info; do \
  if [ -d "$$info" ] && [ ! -s "$$info/RECORD" ]; then rm -rf "$$info"; fi; done
endef

$(NEEDS): | $(MADE)
	@echo "Installing $$(grep -c == $(LOCKS)/$(LOCK).txt) packages into $(VENV): 3 to 5 minutes, once"
	@$(mend)
	@torch=$$(grep -oE '^torch==[^ ]+' $(LOCKS)/$(LOCK).txt); \
	if ! $(BIN)/pip install -qq --no-deps "$$torch" 2>$(VENV)/torch.log; then \
	  grep -q 'No matching distribution' $(VENV)/torch.log || { cat $(VENV)/torch.log >&2; exit 1; }; \
	  echo "$$torch is not on this machine's package index: trying PyTorch's own"; \
	  $(BIN)/pip install -qq --no-deps --index-url https://download.pytorch.org/whl/cpu "$$torch" || { \
	    echo "Neither package index has $$torch for $$($(BIN)/python -V): see deploy/README.md" >&2; exit 1; }; \
	fi
	@$(BIN)/pip install -qq --no-deps -r $(LOCKS)/$(LOCK).txt
	@rm -f $(VENV)/.needs-*; touch $@

$(FARM): | $(NEEDS)
	@$(BIN)/pip install -qq --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.farm-*; touch $@

$(TOOLS): | $(FARM)
	@echo "Installing the $$(grep -c == $(LOCKS)/test.txt) packages of the tests, once"
	@$(mend)
	@$(BIN)/pip install -qq --no-deps -r $(LOCKS)/test.txt
	@rm -f $(VENV)/.tools-*; touch $@

# Debian's Prometheus, with which tests scrape a farm: unpacked into the environment where none is installed.
$(PROMETHEUS): | $(MADE)
	@if ! { command -v prometheus && command -v promtool; } >/dev/null; then \
	  folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	  get='apt-get download -qq prometheus'; \
	  if (cd "$$folder" && { $$get || { apt-get update -qq && $$get; }; } && dpkg-deb -x prometheus_*.deb .) >"$$folder/log" 2>&1; then \
	    install "$$folder"/usr/bin/prometheus "$$folder"/usr/bin/promtool $(BIN); \
	  else echo "No Prometheus is installed and no Debian archive gives it: the tests that need it are skipped"; exit 0; fi; \
	fi; touch $@

# Anew from pyproject.toml; the comments in deploy/locks/*.in say what is pinned and what is left out.
COMPILE = $(UV) pip compile --quiet --upgrade --no-header --annotation-style line --python-version 3.11 \
  --python-platform x86_64-manylinux_2_36 --constraint $(LOCKS)/pins.in --excludes $(LOCKS)/left-out.in
lock: ## resolve deploy/locks anew (needs uv)
	UV_FIND_LINKS=$${UV_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/} \
	  $(COMPILE) pyproject.toml $(LOCKS)/cpu.in --extra cpu --output-file $(LOCKS)/cpu.txt >/dev/null
	UV_FIND_LINKS= $(COMPILE) pyproject.toml --extra gpu --output-file $(LOCKS)/gpu.txt >/dev/null
	UV_FIND_LINKS= $(COMPILE) --group test --constraint $(LOCKS)/cpu.txt --output-file $(LOCKS)/test.txt >/dev/null

clean: ## remove the environment and the caches, not what was rendered or trained
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
