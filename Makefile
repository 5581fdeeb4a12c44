# Everything a contributor types. Each target makes the environment it needs from the hashed pins in requirements/;
# stamp files remember what is installed, so that a second run installs nothing.
.DEFAULT_GOAL := help
# The suite starts services many times: without cached bytecode each start compiles everything anew.
unexport PYTHONDONTWRITEBYTECODE
SHELL := /bin/sh

# The Python that makes the environments: 3.11 or newer.
PYTHON ?= python3
VENV := .venv
PROTOS_VENV := .venv-protos
BIN := $(VENV)/bin
SANDBOX_STAMP := $(VENV)/.installed-sandbox
DEV_STAMP := $(VENV)/.installed-dev
PROTOS_STAMP := $(PROTOS_VENV)/.installed-protos
INSTALL := PYTHON="$(PYTHON)" scripts/install_pins.sh

# make demo RUNS=file TRACE=file JSON=out.json TWICE=1 KEEP=1
DEMO_FLAGS = $(if $(RUNS),--runs "$(RUNS)") $(if $(TRACE),--trace "$(TRACE)") $(if $(JSON),--json "$(JSON)") \
	$(if $(TWICE),--twice) $(if $(KEEP),--keep)

.PHONY: help
help: ## Show this list
	@echo "Tallystick. Targets:"
	@on= off=; if [ -t 1 ]; then on='\033[36m' off='\033[0m'; fi; \
	awk -F ':.*## ' -v on="$$on" -v off="$$off" \
		'/^[a-z][a-z-]*:.*## / { printf "  %s%-11s%s %s\n", on, $$1, off, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(SANDBOX_STAMP) ## Replay recorded agent traffic through the whole suite (RUNS= TRACE= JSON= TWICE=1 KEEP=1)
	@$(BIN)/python -m sandbox.demo $(DEMO_FLAGS)

.PHONY: up
up: $(SANDBOX_STAMP) ## Keep the suite up until Ctrl-C; prints endpoints, keys and a first call (UP_ARGS=)
	@$(BIN)/python -m sandbox.stack $(UP_ARGS)

.PHONY: test
test: $(DEV_STAMP) ## Run all tests (PYTEST_ARGS= for a part of them)
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

.PHONY: retest
retest: $(DEV_STAMP) ## Run again, one at a time, the few tests that failed in the last run
	@$(BIN)/python -m scripts.retest

.PHONY: test-faults
test-faults: $(DEV_STAMP) ## Let services and stores fail under load for MINUTES (10), and count what was lost (SEED=)
	@$(BIN)/python -m tests.faults $(if $(MINUTES),--minutes "$(MINUTES)") $(if $(SEED),--seed "$(SEED)")

.PHONY: bench
bench: $(SANDBOX_STAMP) ## Measure the services against their floors, 15 minutes or more (BENCH_ARGS= for names and flags)
	@$(BIN)/python -m bench $(BENCH_ARGS)

.PHONY: check
check: $(DEV_STAMP) $(PROTOS_STAMP) ## Formatting, lint, types, imports, protos, stubs in sync, static files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	scripts/check_breaking.sh $(BIN)/buf
	scripts/check_stubs.sh $(PROTOS_VENV)
	$(BIN)/python -m scripts.check_static

.PHONY: format
format: $(DEV_STAMP) ## Rewrite Python and protos in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format -w

.PHONY: protos
protos: $(PROTOS_STAMP) ## Generate the stubs in tallystick/ from protos/
	scripts/generate_stubs.sh $(PROTOS_VENV) .

.PHONY: pins
pins: ## Compile requirements/*.in into hashed pins (UPGRADE=1 for the newest versions)
	PYTHON="$(PYTHON)" scripts/compile_pins.sh $(if $(UPGRADE),--upgrade)

$(SANDBOX_STAMP): requirements/sandbox.txt
	@$(INSTALL) $(VENV) $<
	@touch $@

# dev.txt holds everything of sandbox.txt, so that `make demo` after `make test` has nothing left to install.
$(DEV_STAMP): requirements/dev.txt requirements/sandbox.txt
	@$(INSTALL) $(VENV) $<
	@touch $@ $(SANDBOX_STAMP)

$(PROTOS_STAMP): requirements/protos.txt
	@$(INSTALL) $(PROTOS_VENV) $<
	@touch $@
