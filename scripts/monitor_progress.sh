#!/usr/bin/env bash
# How far searches are.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/monitor_progress.sh [--once] [--interval SECONDS] [--all] [--dir DIR] [RUN...]

Shows of a search whether it runs, the best set so far, question-evaluations done and the time left; again every 10
seconds until it ends, or just --once. Without RUN, of the newest search in results/; --all: of all there; --dir: of
those in DIR.
EOF
}
case ${1:-} in -h | --help) usage && exit ;; esac

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"
python=${PYTHON:-$(find_python)}
exec "$python" "$ROOT/scripts/run_folders.py" progress "$@"
