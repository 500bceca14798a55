#!/usr/bin/env bash
# How far searches are.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/monitor_progress.sh [OPTION...] [RUN...]

Shows how far a search is, every 10 seconds until it ends: its state, the
highest score so far of the sets asked most, question-evaluations done,
questions per second, time left, workers alive and failures. It only reads, and
may be started and ended at any time.
RUN is the folder of a search; without it, the newest one in results/.

  --all         all searches there, one line each
  --dir DIR     where searches lie                          [results/]
  --once        show it once
  --interval S  seconds between looks                       [10]
  --json        one JSON object per look, on one line

The state is running, finished, stopped (it goes on when its command is given
again) or failed (an error ended it; the note says which). On network file
systems locks may not be seen: then what wrote of late counts as running, and
a note says so.

--json: {"time": seconds since 1970, "runs": [{...}]}, and for each run:
  run, log                       paths
  state                          as above
  stage, label                   of the last request in the log
  best                           that of the highest score so far of the sets
                                 asked most, when finished the one found:
                                 layers, score, standard_error, questions,
                                 measure (accuracy, weighted accuracy or
                                 divergence)
  question_evaluations           done
  question_evaluations_expected  of about how many
  layer_sets, failures           sets answered, sets that could not be evaluated
  questions_per_second           over the last minute; of a finished search,
                                 over all of it
  seconds_left                   at that pace
  left                           what the log last said of it
  workers                        alive, of, lost
  notes                          what is unusual, in words
What is not known yet is null.

examples:
  scripts/monitor_progress.sh
  scripts/monitor_progress.sh --all --interval 60
  scripts/monitor_progress.sh --once --json | python3 -m json.tool
END
}
for argument; do
  case $argument in -h | --help) usage && exit ;; esac
done

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"
show_runs progress "$@"
