# Needs an environment with requirements-dev.txt: scripts/run_tests.sh makes one and then runs `check`.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: help check test coverage format lock clean

help: ## show this
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/'

check: ## format, lint, types, shell scripts, Dockerfile, tests; changes no files
	PYTHON="$(PYTHON)" scripts/check.sh

test: ## the tests alone
	"$(PYTHON)" -m pytest

coverage: ## the tests, and which lines of genetic_algorithm, evaluation and models none runs; fails below 90 %
	rm -f .coverage .coverage.*
	COVERAGE_FILE="$(CURDIR)/.coverage" "$(PYTHON)" -m coverage run -m pytest -n "$$(nproc)" --dist worksteal
	"$(PYTHON)" -m coverage combine --quiet
	for package in genetic_algorithm evaluation models; do \
	  "$(PYTHON)" -m coverage report --skip-covered --sort=cover --include="$$package/*" \
	    --omit="models/packed/triton_*" || exit; done # which run on GPUs alone: tests/gpu

format: ## rewrite the Python files in the project's format
	"$(PYTHON)" -m ruff check --fix-only --quiet .
	"$(PYTHON)" -m ruff format .

lock: ## write constraints.txt from what is installed
	{ sed '/^[^#]/d' constraints.txt; "$(PYTHON)" -m pip freeze --all --exclude-editable --exclude pip \
	  | sed 's/+cpu$$//'; } > constraints.tmp
	mv constraints.tmp constraints.txt

clean: ## remove caches, not results
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
