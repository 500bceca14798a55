#!/usr/bin/env bash
# A search or a checkpoint as a SLURM job.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/submit.sh [search|checkpoint] [SLURM_OPTION...] [OPTION...]

Makes ready on this machine what compute nodes, often without a network, cannot get (environment; models of a pair that
is named), then submits scripts/slurm/search.sbatch, search_multinode.sbatch where --nodes is above 1, or
create_checkpoint.sbatch. Prints the job's number and how to follow it. What is not set here is as in these files.

  --dry-run          print the command and do nothing
  --nodes N          nodes for one search
  --gpus N           GPUs on each node; 0 for none
  --time T           limit, as 30 (minutes), 12:00:00 or 2-00:00:00; then the job goes on in a new sitting by itself
  --array A          a search for each seed in A, as 0-4 or 1,5,9 or 0-9%2 (two at a time)
  --cpus N           CPU cores on each node
  --mem M            memory on each node, as 64G
  --partition P, --account A, --qos Q, --job-name NAME, --dependency D      as for sbatch
  --container IMAGE  FILE.sif through Apptainer; FILE.sqsh or an image's name through Enroot. Nothing is made ready then:
                     the image has the environment, and models lie where HF_HOME and MODELSCOPE_CACHE say (SETUP.md)

All other options, and all after --, go to the search (python -m genetic_algorithm.run_search --help) or to
create_replaced_model_checkpoint.py. Relative paths are as seen from here;
so is the log, slurm-JOB.out.

examples:
  scripts/submit.sh --pair tiny --dry-run
  scripts/submit.sh --pair llamba-8b --gpus 4 --time 12:00:00 --partition gpu --account lab
  scripts/submit.sh --pair llamba-8b --gpus 8 --nodes 4
  scripts/submit.sh --pair tiny --array 0-4
  scripts/submit.sh checkpoint --pair llamba-8b --layers 11 13 17 21 --output_dir model_checkpoints/best_4layer

Settings (config.sh; the environment wins): PAIR BASE DONOR GPUS PYTHON CONDA_ENV VENV TORCH_INDEX_URL
EOF
}

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib.sh"

refuse() {
  echo "submit.sh: error: $*; --help shows how" >&2
  exit 2
}

number='[1-9][0-9]*'
declare -A looks_like=(
  [--nodes]=$number [--cpus]=$number [--mem]='[0-9]+[KMGTkmgt]?' [--gpus]="0|([A-Za-z0-9_.-]+:)?$number"
  [--time]='[0-9]+(-[0-9]+)?(:[0-9]+){0,2}' [--array]="[0-9]+([-,:][0-9]+)*(%$number)?" [--container]='.+'
  [--partition]='.+' [--account]='.+' [--qos]='.+' [--job-name]='.+' [--dependency]='.+'
)
declare -A given=()
kind=search rest=() options=() is_dry=""
case ${1:-} in search | checkpoint) kind=$1 && shift ;; esac
while (($#)); do
  name=${1%%=*}
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) is_dry=yes ;;
    --) shift && rest+=("$@") && break ;;
    *)
      if [[ -z $name || -z ${looks_like[$name]:-} ]]; then
        rest+=("$1")
      elif [[ $1 == *=* ]]; then
        given[$name]=${1#*=}
      else
        [[ $# -ge 2 ]] || refuse "$name needs a value"
        given[$name]=$2 && shift
      fi
      ;;
  esac
  shift
done

for name in --partition --account --qos --job-name --dependency --nodes --gpus --cpus --mem --time --array --container; do
  [[ -n ${given[$name]+set} ]] || continue
  value=${given[$name]}
  [[ $value =~ ^(${looks_like[$name]})$ ]] || refuse "$name cannot be '$value'"
  case $name$value in
    --gpus0) options+=(--gres=none) ;;
    --gpus*) options+=(--gres="gpu:$value") ;;
    --cpus*) options+=(--cpus-per-task="$value") ;;
    --container*) export CONTAINER=$value ;;
    *) options+=("$name=$value") ;;
  esac
done

file=scripts/slurm/search.sbatch
if [[ $kind == checkpoint ]]; then
  file=scripts/slurm/create_checkpoint.sbatch
  [[ -z ${given[--nodes]:-}${given[--array]:-} ]] || refuse "a checkpoint is made once, on one node"
  [[ " ${rest[*]} " =~ \ --(layers|from[_-]result)[\ =] ]] || refuse "a checkpoint needs --layers or --from_result"
elif ((${given[--nodes]:-1} > 1)); then
  file=scripts/slurm/search_multinode.sbatch
fi

# SLURM_SUBMIT_DIR, by which the job finds the project, is where sbatch runs; --chdir is where the job does.
[[ $PWD -ef $ROOT ]] || options+=(--chdir="$PWD")
command=(sbatch --parsable "${options[@]}" "$file" "${rest[@]}")
[[ -z ${CONTAINER:-} ]] || command=(env CONTAINER="$CONTAINER" "${command[@]}")
if [[ -n $is_dry ]]; then
  [[ $PWD -ef $ROOT ]] || printf 'cd %q && ' "$ROOT"
  printf '%q ' "${command[@]}"
  echo
  exit
fi

command -v sbatch >/dev/null || die "no sbatch on PATH; submit where SLURM is (without SLURM: scripts/run_full_search_fast.sh)"
if [[ -z ${CONTAINER:-} ]]; then
  set_up run
  if [[ $kind == search ]]; then
    tool model_preparation.pair_facts search_options "${rest[@]}" >/dev/null || exit # not only after the queue
    read_settings_file "${rest[@]}"
  fi
  if [[ $file == *multinode* || ($file == */search* && ${given[--gpus]:-1} =~ (^|:)([2-9]|[1-9][0-9]+)$) || $GPUS == *,* ]] ||
    has_option "--gpus --cpu-workers --ray-address" "${IN_FILE[@]}" "${rest[@]}"; then
    set_up cluster # compute nodes may have no network
  fi
  if [[ -n $PAIR$BASE$DONOR ]] || has_option "$MODELS" "${IN_FILE[@]}" "${rest[@]}"; then
    choose_pair "${rest[@]}"
    tool model_preparation.modelscope_utils --pair "$PAIR" >/dev/null
  fi
fi

submitted=$(cd -- "$ROOT" && "${command[@]}") || exit
id=${submitted%%;*} # ID;CLUSTER where there are several
[[ -z ${given[--array]:-} ]] && log=slurm-$id.out || log="slurm-${id}_*.out"
echo "job $id"
echo "follow it: tail -F $(printf %q "$PWD")/$log"
echo "cancel it: scancel $id"
last_line "submit.sh: job $id is in the queue; once it has begun: scripts/monitor_progress.sh" \
  "submit.sh：作业 $id 已提交；开始运行后可查看进度：scripts/monitor_progress.sh"
