#!/usr/bin/env bash
# One hybrid as a checkpoint folder, set-up included.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/create_checkpoint.sh --layers I [I...] --output_dir DIR [OPTION...]
       scripts/create_checkpoint.sh --from_result FILE --output_dir DIR [OPTION...]

Makes the environment ready where it is not, then a checkpoint of base and donor with these layers, or those of a
search's result. A stopped run is gone on with by the same command. All options, once the environment is there:
python model_preparation/create_replaced_model_checkpoint.py --help

examples:
  scripts/create_checkpoint.sh --pair tiny --layers 0 2 4 5 --output_dir model_checkpoints/best_4layer
  scripts/create_checkpoint.sh --from_result results/mine/search_result_1.json --output_dir model_checkpoints/best

Settings (config.sh; the environment wins): PAIR BASE DONOR PYTHON CONDA_ENV VENV TORCH_INDEX_URL
EOF
}
case ${1:-} in -h | --help) usage && exit ;; esac

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"
set_up run
export PAIR BASE DONOR
become_tool model_preparation.create_replaced_model_checkpoint "$@"
