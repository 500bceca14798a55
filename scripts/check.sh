#!/usr/bin/env bash
# Format, lint, types, shell scripts, Dockerfile, tests: the checks themselves, in an environment that is ready.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: PYTHON=... scripts/check.sh [PYTEST_ARGUMENT...]

What `make check` and scripts/run_tests.sh run; it changes no files. PYTHON [python3] must have what
requirements-dev.txt lists; scripts/run_tests.sh sees to that.

examples:
  PYTHON=.venv/bin/python scripts/check.sh tests/scripts
EOF
}
case ${1:-} in -h | --help) usage && exit ;; esac

start=$SECONDS
python=$(command -v "${PYTHON:-python3}") || {
  echo "check.sh: error: no ${PYTHON:-python3}; run scripts/run_tests.sh, which makes an environment" >&2
  exit 1
}
here=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
cd -- "$here/.."

step() {
  printf -- '--- %s (%d s)\n' "$1" $((SECONDS - start))
  shift
  "$@"
}

shell_files=(config.sh DEPLOY_TEST.sh .ci/run scripts/*.sh scripts/slurm/* model_preparation/*.sh docker/*.sh)
PATH=$(dirname -- "$python"):$PATH # where shellcheck and hadolint lie

step "format" "$python" -m ruff format --check .
step "lint" "$python" -m ruff check .
step "types" "$python" -m mypy
step "shell scripts" shellcheck -x -P . "${shell_files[@]}"
step "Dockerfile" hadolint docker/Dockerfile
workers=$("$python" -c 'import os; print(min(8, len(os.sched_getaffinity(0))))')
step "tests" "$python" -m pytest -n "$workers" --dist worksteal "$@"
printf -- '--- all checks passed (%d s)\n' $((SECONDS - start))
