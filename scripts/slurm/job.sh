# shellcheck shell=bash
# What the sbatch files share. They source it from the project's folder (SLURM runs a copy of them, which lies
# elsewhere) and keep their settings. Never run.
# Sets ROOT, GPUS_HERE (how many GPUs this node gives the job) and LAUNCH (what commands are started through: nothing).

set -euo pipefail
BASH_ARGV0=${SLURM_JOB_NAME:-job} # how messages begin
# shellcheck source=scripts/lib.sh
source "$SLURM_SUBMIT_DIR/scripts/lib.sh"
[[ -n ${SLURM_JOB_ID:-} ]] || die "this is for sbatch; without SLURM: scripts/run_full_search_fast.sh"

# USR1 is SLURM's warning before the time limit, TERM is scancel or preemption. They may come at any time, and stop CHILD
# where that is there already.
STOPPED="" CAUGHT=0 CHILD="" LAUNCH=()
# shellcheck disable=SC2329 # the traps call it
stop() {
  CAUGHT=$((CAUGHT + 1)) STOPPED=$1
  if [[ $CHILD && ${LAUNCH[0]:-} == srun ]]; then
    scancel --signal=TERM "$SLURM_JOB_ID" || true # to its steps; srun itself would kill them
  elif [[ $CHILD ]]; then
    kill -TERM "$CHILD" 2>/dev/null || true
  fi
}
trap 'stop warned' USR1
trap 'stop ended' TERM

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
# Does this job say itself where it runs? Then no file adds to it.
names_devices() { [[ $GPUS_SAID != auto ]] || has_option "--gpu --gpus --cpu-workers --ray-address" "$@"; }
GPUS_SAID=$GPUS
# A GPU that was asked for must be there: auto would go on without.
[[ $GPUS != auto || $GPUS_HERE == 0 ]] || GPUS=0

# Add to LAUNCH what starts a command inside CONTAINER, if that is set. Models and questions are kept where they are
# without one: the image names folders of its own for them, which cannot be written here or go with the container.
into_container() {
  local runtime name names folders=$ROOT${MOUNTS:+,$MOUNTS}
  [[ -n $CONTAINER ]] || return 0
  [[ $PWD/ == "$ROOT"/* ]] || folders+=,$PWD
  export PYTHON=$CONTAINER_PYTHON
  export HF_HOME=${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}
  export MODELSCOPE_CACHE=${MODELSCOPE_CACHE:-$HOME/.cache/modelscope}
  export GA_CACHE_DIR=${GA_CACHE_DIR:-$HOME/.cache/ga_layer_search}
  export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/torchinductor-$(id -un)}
  names=PYTHON,HF_HOME,MODELSCOPE_CACHE,GA_CACHE_DIR,TRITON_CACHE_DIR,TORCHINDUCTOR_CACHE_DIR
  folders+=,$HF_HOME,$MODELSCOPE_CACHE,$GA_CACHE_DIR
  case $CONTAINER in
    *.sif | *.sqsh) [[ -r $CONTAINER ]] || die "CONTAINER=$CONTAINER cannot be read on $(hostname); give a path that it sees" ;;
  esac
  if [[ $CONTAINER == *.sif ]]; then
    runtime=$(command -v apptainer || command -v singularity) ||
      die "CONTAINER=$CONTAINER needs apptainer on $(hostname); load its module, or leave CONTAINER empty"
    LAUNCH+=("$runtime" exec --bind "$folders" --pwd "$PWD")
    for name in ${names//,/ }; do LAUNCH+=(--env "$name=${!name}"); done
    [[ $GPUS_HERE == 0 ]] || LAUNCH+=(--nv)
    LAUNCH+=("$CONTAINER")
  elif srun --help | grep -q -- --container-image; then # Enroot through SLURM's plugin pyxis
    ((${#LAUNCH[@]})) || LAUNCH=(srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
    LAUNCH+=(--container-image="$CONTAINER" --container-workdir="$PWD" --container-mount-home)
    LAUNCH+=(--container-env="HOME,$names") # else what the image says of these wins
    LAUNCH+=(--container-mounts="$(sed -E 's/([^,]+)/\1:\1/g' <<<"$folders")")
  else
    die "CONTAINER=$CONTAINER needs Enroot and pyxis, which srun here does not have; give a .sif, or leave CONTAINER empty"
  fi
  mkdir -p -- "$HF_HOME" "$MODELSCOPE_CACHE" "$GA_CACHE_DIR" # else they cannot be mounted
}

# Set OUTPUT to the folder of this job's search, a folder for each task of an array, and wait until nobody works there.
choose_output() {
  local lock
  OUTPUT=$(option_value --output-dir "$@")
  if [[ -z $OUTPUT ]]; then
    OUTPUT=$ROOT/results/$(job_name)
  elif [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    OUTPUT=${OUTPUT%/}_$SLURM_ARRAY_TASK_ID
  fi
  # After a node failure what ran there may still be running, unseen by SLURM. This lock is the one that it holds.
  if [[ -n ${SLURM_RESTART_COUNT:-} && -e $OUTPUT/config.json ]]; then
    flock --wait "${GA_WAIT_S:-600}" 8 8<>"$OUTPUT/config.json" & # NFS locks what is open for writing
    lock=$!
    [[ $STOPPED ]] || wait "$lock" || [[ $STOPPED ]] || say "$OUTPUT is in use, or its disk has no locks"
    [[ $STOPPED ]] || return 0
    kill "$lock" 2>/dev/null || true
    [[ $STOPPED == warned ]] || is_preempted || exit 143
    to_the_queue "go on with --output-dir $OUTPUT"
  fi
}

# Print the address at which other nodes reach this one: that by which SLURM does. A name may be this node's own in
# /etc/hosts, where Debian gives it 127.0.1.1, at which nobody else reaches it.
address_of_this_node() {
  local name address
  name=$(scontrol show node "$SLURMD_NODENAME" --oneliner | grep -o 'NodeAddr=[^ ]*')
  address=$(getent ahostsv4 "${name#NodeAddr=}" | awk 'NR == 1 {print $1}')
  [[ $address != 127.* ]] || read -r address _ <<<"$(hostname -I) $address"
  echo "$address"
}

# Print how many bytes a file or folder holds.
size_of() { [[ ! -e $1 ]] || du --summarize --bytes -- "$1" | cut -f1; }

# Has SLURM begun to preempt this job? It gives it a grace time, and requeues it only if it does not end within that.
is_preempted() {
  local job
  job=$(scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null) &&
    [[ $job == *JobState=RUNNING* && $job != *PreemptTime=None* && $job == *PreemptTime=* ]]
}

# Requeue this job, and end. $1: what to do where SLURM does not.
to_the_queue() {
  say "to the queue again; it goes on from here"
  scontrol requeue "$SLURM_JOB_ID" || die "SLURM does not requeue it; $1"
  exit 0
}

# Run a command to its end, and end the job as it ended. A warning or preemption stops it and requeues the job; scancel
# stops it. $1: what grows as the work is done.
run_job() {
  local record=$1 before status seen
  shift
  before=$(size_of "$record")
  echo "job $SLURM_JOB_ID on $(hostname), start $((${SLURM_RESTART_COUNT:-0} + 1)): $(printf '%q ' "$@")" >&2
  "$@" &
  CHILD=$!
  [[ -z $STOPPED ]] || kill -TERM "$CHILD" 2>/dev/null || true # it came before there was a child
  while # a signal ends wait, not the command
    seen=$CAUGHT
    wait "$CHILD" && status=0 || status=$?
    [[ $CAUGHT != "$seen" ]]
  do :; done
  ((status)) || exit 0
  if ! is_preempted; then
    [[ $STOPPED == warned ]] || exit "$status"
    [[ $(size_of "$record") != "$before" ]] ||
      die "nothing was done in $SECONDS s before the warning; ask for more time (--time). It is not requeued"
  fi
  to_the_queue "go on as the line above says"
}
