#!/usr/bin/env bash
# What searches found.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/check_results.sh [--all] [--dir DIR] [--json] [RUN...]

Shows the ranking that a search ended with: layers, accuracy, standard error,
held-out accuracy, what is established, and the page that tells the rest. RUN is
the folder of a search; without it, the newest one in results/; --all: all of
there, one result below the other, and at the end how to read them; --dir: of
those in DIR. Exit status 1 where there is no result yet, 2 where one is damaged.

--json: one line, for machines:
  {"finished": [{...}], "unfinished": [folders]}, and for each finished run:
  run, result, report            paths; report is null where there is none
  layers                         of the best set
  accuracy, standard_error,      its score on questions by which it was chosen,
  questions                      so that it may flatter
  holdout_accuracy, holdout_standard_error, holdout_questions
                                 its score on those that took no part in the
                                 choice; null and 0 where none were held out
  final_results, base, donor     the ranking, the base and the donor, as in the
                                 result file
  ranked_by, conclusion          in words
  usage                          question-evaluations and seconds by stage

examples:
  scripts/check_results.sh --all
  scripts/check_results.sh --json results/mine
END
}
for argument; do
  case $argument in -h | --help) usage && exit ;; esac
done

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"
show_runs results "$@"
