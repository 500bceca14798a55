#!/usr/bin/env bash
# The full search on real answers.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/run_full_search_fast.sh [OPTION...]

The full three-stage search: population 40, 20 generations, 20 questions per subject for the first look, all that are
not held out for verification, and a budget of 16 passes (all questions once). The result lies in
results/real_<timestamp>/. Giving the same --output-dir again resumes a search.

A quarter of each subject's questions is held out for the report; --holdout 0 lets all of them choose.

Every option of the search may follow and wins over the above, for instance
  --pair NAME        base and donor [llamba-8b with a GPU of 24 GB or more, else tiny]
  --base MODEL       another base, --donor MODEL another donor: a folder or a hub id
  --max-passes X     another budget; --max-hours X, a time limit
  --strategy NAME    another way to search: ga-original, scan, beam, ...
  --seed N           another random draw
  --output-dir DIR   where results go
  --config FILE      settings in a file, or those of a search whose folder FILE is; --print-config prints them all
  --dry-run          print what would be done, and how long it would take
All of them: python -m genetic_algorithm.run_search --help
Options win over the settings below, those over --config, that over the preset.

examples:
  scripts/run_full_search_fast.sh --pair tiny --dry-run
  scripts/run_full_search_fast.sh --pair llamba-8b --max-hours 12 --output-dir results/mine
  scripts/run_full_search_fast.sh --pair tiny --seed 3 --print-config

Settings (config.sh; the environment wins): PAIR BASE DONOR GPUS PYTHON CONDA_ENV VENV TORCH_INDEX_URL
EOF
}
case ${1:-} in -h | --help) usage && exit ;; esac

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"
set_up run
become_search full "$@"
