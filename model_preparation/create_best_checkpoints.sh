#!/usr/bin/env bash
# Checkpoints of the layer sets that are known of a pair, or of the best that a search found.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: model_preparation/create_best_checkpoints.sh [--pair NAME] [--from-result FILE] [OPTION...]

Makes a checkpoint of each known set of one to four layers, in DIR/<base>_replaced_<layers>: for llamba-8b the published
ones (the best of each size, as DIR/llamba_replaced_11_13_17_29, and some others, as DIR/llamba_replaced_11_13_17_21),
for the bundled pair the best of each size of all there are.
A checkpoint that is there is kept. Where one cannot be made the others still are, and the exit status is 1.

  --from-result FILE      the best of each layer count of a search_result_*.json instead
  --pair NAME             base and donor, also as --base MODEL and --donor MODEL [that of the extracted layers, else
                          llamba-8b with a GPU of 24 GB or more, else tiny]
  --output_dir DIR        [model_checkpoints]
  --llama_layers_dir DIR  the donor's extracted layers [extracted_llama_layers, else the donor itself]
  --formats LIST          of safetensors,state_dict,model [all, or those that the disk has room for]
  --force                 make those again that are there

examples:
  model_preparation/create_best_checkpoints.sh --pair tiny --formats safetensors
  model_preparation/create_best_checkpoints.sh --from-result results/mine/search_result_1.json

Settings (config.sh; the environment wins): PAIR BASE DONOR PYTHON CONDA_ENV VENV TORCH_INDEX_URL
EOF
}
case ${1:-} in -h | --help) usage && exit ;; esac

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/../scripts/lib.sh"

set_up run
export PAIR BASE DONOR
status=0
tool model_preparation.create_best_checkpoints "$@" || status=$?
test="${PY#"$PWD/"} model_preparation/test_checkpoint.py --checkpoint DIR"
((status)) || last_line "test one with: $test" "测试其中一个 checkpoint：$test"
exit "$status"
