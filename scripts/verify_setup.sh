#!/usr/bin/env bash
# What is here, what is missing, and which command brings it. Sets nothing up.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/verify_setup.sh [--pair NAME] [--base MODEL] [--donor MODEL] [OPTION...]

One page on this machine: Python, PyTorch, CUDA, kernels, memory, disks, hubs, the models and questions of the pair,
SLURM, containers, optional packages; and what each missing thing would bring, with the command that brings it. It
changes nothing, and works before any set-up as well. Exit status 0 where a search of the pair can run; 1 where it
cannot, and the last line on stdout names what is missing.

  --pair NAME      base and donor [llamba-8b with a GPU of 24 GB or more, else tiny]
  --gpu N|cpu      device [auto]
  --mmlu-dir DIR   local folder of cais/mmlu
  --measure        load the models and time them [so for tiny; else a forecast]
  --json           one JSON object, for machines
Hubs are asked for 3 seconds at most, and not at all with HF_HUB_OFFLINE=1.

examples:
  scripts/verify_setup.sh
  scripts/verify_setup.sh --pair llamba-8b --json

Settings (config.sh; the environment wins): PAIR BASE DONOR GPUS PYTHON CONDA_ENV VENV
EOF
}
case ${1:-} in -h | --help) usage && exit ;; esac

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"

if PY=$(ready_python); then
  if ! has_option "$MODELS" "$@"; then
    choose_pair
    set -- --pair "$PAIR" "$@"
  fi
  status=0
  tool evaluation.doctor --gpu "${GPUS%%,*}" "$@" || status=$?
  case $status in
    0) last_line "verify_setup.sh: ready" "verify_setup.sh：环境已就绪" ;;
    1) last_line "verify_setup.sh: not ready; the line above says what is missing" \
      "verify_setup.sh：尚未就绪，缺少的内容见上一行" ;;
  esac
  exit "$status"
fi

make="./scripts/quick_test_real.sh --pair tiny --dry-run"
[[ -z $PYTHON ]] || die "PYTHON=$PYTHON is not a Python 3.11 or later; name another, or unset it and run $make"
if PY=$(find_python 2>/dev/null); then
  as_json=()
  ! has_option --json "$@" || as_json=(--json)
  tool evaluation.surroundings "${as_json[@]}" || true
else
  missing="no Python 3.11 or later on PATH; install one, or set PYTHON=/path/to/python"
  if has_option --json "$@"; then
    printf '{"can_run": false, "problems": ["%s"]}\n' "$missing"
  else
    echo "a search cannot run: $missing"
  fi
fi
if command -v conda >/dev/null; then
  last_line "verify_setup.sh: not ready: there is no conda environment $CONDA_ENV yet; make it with: $make" \
    "verify_setup.sh：尚未就绪：还没有 conda 环境 $CONDA_ENV；创建环境：$make"
else
  last_line "verify_setup.sh: not ready: there is no environment in $VENV yet; make it with: $make" \
    "verify_setup.sh：尚未就绪：$VENV 中还没有环境；创建环境：$make"
fi
exit 1
