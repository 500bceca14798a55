# shellcheck shell=bash
# What the sbatch files share. They source it from the project's folder (SLURM runs a copy of them, which lies
# elsewhere) and keep their settings. Never run.
# Sets ROOT, GPUS_HERE (how many GPUs this node gives the job) and LAUNCH (what commands are started through: nothing).

set -euo pipefail
BASH_ARGV0=${SLURM_JOB_NAME:-job} # how messages begin
# shellcheck source=scripts/lib.sh
source "$SLURM_SUBMIT_DIR/scripts/lib.sh"
[[ -n ${SLURM_JOB_ID:-} ]] || die "this is for sbatch; without SLURM: scripts/run_full_search_fast.sh"
export PAIR BASE DONOR GPUS PYTHON CONDA_ENV VENV TORCH_INDEX_URL
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-$(id -un)} # on a network disk kernels load slowly

# Print this job's name in names of folders; it stays when the job is requeued.
job_name() {
  if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    echo "slurm_${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  else
    echo "slurm_$SLURM_JOB_ID"
  fi
}

# Print how many GPUs this node gives the job: those of CUDA_VISIBLE_DEVICES, which SLURM sets, else SLURM's own count.
count_gpus() {
  local names
  case ${CUDA_VISIBLE_DEVICES-unset} in
    unset) echo "${SLURM_GPUS_ON_NODE:-0}" ;;
    "" | -1 | NoDevFiles) echo 0 ;;
    *) IFS=, read -ra names <<<"$CUDA_VISIBLE_DEVICES" && echo "${#names[@]}" ;;
  esac
}
GPUS_HERE=$(count_gpus)
LAUNCH=()
# Does this job say itself where it runs? Then no file adds to it.
names_devices() { [[ $GPUS_SAID != auto ]] || has_option "--gpu --gpus --cpu-workers --ray-address" "$@"; }
GPUS_SAID=$GPUS
# A GPU that was asked for must be there: auto would go on without.
[[ $GPUS != auto || $GPUS_HERE == 0 ]] || GPUS=0

# Add to LAUNCH what starts a command inside CONTAINER, if that is set.
into_container() {
  local runtime folders=$ROOT${MOUNTS:+,$MOUNTS}
  [[ -n $CONTAINER ]] || return 0
  [[ $PWD/ == "$ROOT"/* ]] || folders+=,$PWD
  export PYTHON=$CONTAINER_PYTHON
  case $CONTAINER in
    *.sif | *.sqsh) [[ -r $CONTAINER ]] || die "CONTAINER=$CONTAINER cannot be read on $(hostname); give a path that it sees" ;;
  esac
  if [[ $CONTAINER == *.sif ]]; then
    runtime=$(command -v apptainer || command -v singularity) ||
      die "CONTAINER=$CONTAINER needs apptainer on $(hostname); load its module, or leave CONTAINER empty"
    LAUNCH+=("$runtime" exec --bind "$folders" --pwd "$PWD")
    [[ $GPUS_HERE == 0 ]] || LAUNCH+=(--nv)
    LAUNCH+=("$CONTAINER")
  elif srun --help | grep -q -- --container-image; then # Enroot through SLURM's plugin pyxis
    ((${#LAUNCH[@]})) || LAUNCH=(srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
    LAUNCH+=(--container-image="$CONTAINER" --container-workdir="$PWD" --container-mount-home)
    LAUNCH+=(--container-mounts="$(sed -E 's/([^,]+)/\1:\1/g' <<<"$folders")")
  else
    die "CONTAINER=$CONTAINER needs Enroot and pyxis, which srun here does not have; give a .sif, or leave CONTAINER empty"
  fi
}

# Set OUTPUT to the folder of this job's search, a folder for each task of an array, and wait until nobody works there.
choose_output() {
  OUTPUT=$(option_value --output-dir "$@")
  if [[ -z $OUTPUT ]]; then
    OUTPUT=$ROOT/results/$(job_name)
  elif [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    OUTPUT+=_$SLURM_ARRAY_TASK_ID
  fi
  # After a node failure what ran there may still be running, unseen by SLURM. This lock is the one that it holds.
  if [[ -n ${SLURM_RESTART_COUNT:-} && -e $OUTPUT/config.json ]]; then
    flock --wait "${GA_WAIT_S:-600}" "$OUTPUT/config.json" true || say "$OUTPUT is in use, or its disk has no locks"
  fi
}

# Print the address at which other nodes reach this one: that by which SLURM does.
address_of_this_node() {
  local name
  name=$(scontrol show node "$SLURMD_NODENAME" --oneliner | grep -o 'NodeAddr=[^ ]*')
  getent ahostsv4 "${name#NodeAddr=}" | awk 'NR == 1 {print $1}'
}

# Print how many bytes a file or folder holds.
size_of() { [[ ! -e $1 ]] || du --summarize --bytes -- "$1" | cut -f1; }

# Has SLURM begun to preempt this job? It gives it a grace time, and requeues it only if it does not end within that.
is_preempted() {
  local job
  job=$(scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null) &&
    [[ $job == *JobState=RUNNING* && $job != *PreemptTime=None* && $job == *PreemptTime=* ]]
}

# Run a command to its end, and end the job as it ended. USR1, SLURM's warning before the time limit, stops it and
# requeues the job; TERM (scancel) stops it. $1: what grows as the work is done.
run_job() {
  local record=$1 before child status stopped="" caught=0 seen
  shift
  before=$(size_of "$record")
  # shellcheck disable=SC2329 # the traps call it
  stop() {
    caught=$((caught + 1)) stopped=$1
    if [[ ${LAUNCH[0]:-} == srun ]]; then
      scancel --signal=TERM "$SLURM_JOB_ID" || true # to its steps; srun itself would kill them
    elif [[ -n $child ]]; then
      kill -TERM "$child" 2>/dev/null || true
    fi
  }
  child=""
  trap 'stop warned' USR1
  trap 'stop ended' TERM
  echo "job $SLURM_JOB_ID on $(hostname), start $((${SLURM_RESTART_COUNT:-0} + 1)): $(printf '%q ' "$@")" >&2
  "$@" &
  child=$!
  [[ -z $stopped ]] || kill -TERM "$child" # it came before there was a child
  while # a signal ends wait, not the command
    seen=$caught
    wait "$child" && status=0 || status=$?
    [[ $caught != "$seen" ]]
  do :; done
  ((status)) || exit 0
  ! is_preempted || stopped=warned
  if [[ $stopped == warned ]]; then
    [[ $(size_of "$record") != "$before" ]] ||
      die "nothing was done in $SECONDS s before the warning; ask for more time (--time). It is not requeued"
    say "to the queue again; it goes on from here"
    scontrol requeue "$SLURM_JOB_ID" || die "SLURM does not requeue it; go on as the line above says"
    exit 0
  fi
  exit "$status"
}
