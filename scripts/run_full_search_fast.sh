#!/usr/bin/env bash
# The full search on real answers.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"

case ${1:-} in
  -h | --help)
    search_usage "The full three-stage search: population 40, 20 generations, 20 questions per subject for the first look, all that are
not held out for verification, and a budget of 16 passes (all questions once)."
    exit
    ;;
esac
set_up run
become_search full "$@"
