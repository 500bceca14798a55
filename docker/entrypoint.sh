#!/usr/bin/env bash
# What the image runs: a script of the project, or any other command, in place of this one.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: docker run [OPTION...] IMAGE [COMMAND...]     (docker/entrypoint.sh starts COMMAND)

COMMAND is a script of the project with its options, or any other program:
  DEPLOY_TEST.sh --pair tiny           the whole road once on the bundled pair [this, where no COMMAND is given]
  scripts/run_full_search_fast.sh      a full search; scripts/quick_test_real.sh, a quick one
  scripts/check_results.sh             what searches found
  python model_preparation/extract_layers.py, ...
  bash                                 a shell
Each tells its own options with --help. Options alone (--pair llamba-8b) go to DEPLOY_TEST.sh.

Options of docker that matter:
  --user "$(id -u):$(id -g)"           files in the folders below are yours [1000:1000]
  -v "$PWD/results:/app/results"       results; make the folder first, or docker makes it as root
  -v "$PWD/model_checkpoints:/app/model_checkpoints"
  -v "$PWD/extracted_llama_layers:/app/extracted_llama_layers"
  -v ga-cache:/cache                   downloaded models (HF_HOME, MODELSCOPE_CACHE) and other caches
  --gpus all                           use the GPUs

examples:
  docker run --rm IMAGE --pair tiny
  docker run --rm --gpus all -v "$PWD/results:/app/results" IMAGE scripts/run_full_search_fast.sh --pair llamba-8b
EOF
}
case ${1:---help} in
  -h | --help) usage && exit ;;
  -*) set -- DEPLOY_TEST.sh "$@" ;;
esac

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/../scripts/lib.sh"

# Refuse a folder that cannot be written before work is done that would be lost.
check_writable() {
  local folder
  folder=$(realpath -m -- "$1")
  until [[ -e $folder ]]; do folder=$(dirname -- "$folder"); done
  [[ -d $folder && -w $folder ]] ||
    die "cannot write in $folder as user $(id -u):$(id -g); mount a folder of that user there, not read-only," \
      "or run as its owner (docker run --user \"\$(id -u):\$(id -g)\")"
}

case ${1##*/} in
  DEPLOY_TEST.sh)
    for folder in results model_checkpoints extracted_llama_layers; do check_writable "$ROOT/$folder"; done
    ;;
  quick_test_real.sh | run_full_search_fast.sh)
    output=$(option_value --output-dir "$@")
    check_writable "${output:-$ROOT/results}"
    ;;
esac

command -v -- "$1" >/dev/null || {
  echo "${0##*/}: error: no program $1 in this image; --help tells what it runs" >&2
  exit 127
}
exec "$@"
