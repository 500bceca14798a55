#!/usr/bin/env bash
# What searches found.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/check_results.sh [--all] [--dir DIR] [RUN...]

Shows the ranking that a search ended with: layers, accuracy, standard error, held-out accuracy. Without RUN, that of
the newest search in results/; --all: of all there; --dir: of those in DIR. Exit status 1 where there is no result yet.
EOF
}
case ${1:-} in -h | --help) usage && exit ;; esac

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"
python=${PYTHON:-$(find_python)}
exec "$python" "$ROOT/scripts/run_folders.py" results "$@"
