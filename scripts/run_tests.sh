#!/usr/bin/env bash
# Everything that must hold, from nothing but Python 3.11 or later.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/run_tests.sh [PYTEST_ARGUMENT...]

Makes the environment ready where it is not (see config.sh), then runs what `make check` runs: format, lint, types,
shell scripts, Dockerfile, tests. Arguments go to pytest.

examples:
  scripts/run_tests.sh
  scripts/run_tests.sh tests/models -k cache
EOF
}
case ${1:-} in -h | --help) usage && exit ;; esac

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"
set_up dev
status=0
PYTHON=$PY "$ROOT/scripts/check.sh" "$@" || status=$?
if ((status == 0)); then
  last_line "run_tests.sh: all checks passed" "run_tests.sh：全部检查通过"
else
  last_line "run_tests.sh: not passed; the lines above say which check" "run_tests.sh：未通过，是哪项检查见上面几行"
fi
exit "$status"
