#!/usr/bin/env bash
# A quick search on real answers.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"

case ${1:-} in
  -h | --help)
    search_usage "A quick three-stage search: population 20, 15 generations, 10 questions per subject for the first look, 50 for
verification, and a budget of 6 passes (all questions once)."
    exit
    ;;
esac
set_up run
become_search quick "$@"
