# shellcheck shell=bash
# What the entry points share: where we are, which Python, which pair. Sourced, never run.
# Sets ROOT; after set_up, PY is an interpreter in which everything imports.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
SETUP_LOG=$ROOT/.setup.log
# shellcheck source=config.sh
source "$ROOT/config.sh"

# Threads that wait sleep. By default they spin, and on a machine that does anything else beside a search on all of its
# cores that makes everything several times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

die() {
  echo "${0##*/}: error: $*" >&2
  exit 1
}

say() { echo "$*" >&2; }

# The language of last lines: Chinese where the locale's messages are, else English. Tools of ours read GA_LANGUAGE.
case ${LC_ALL:-${LC_MESSAGES:-${LANG:-}}} in
  zh*) GA_LANGUAGE=zh ;;
  *) GA_LANGUAGE=en ;;
esac
export GA_LANGUAGE

# Say what comes next: last_line ENGLISH CHINESE.
last_line() {
  if [[ $GA_LANGUAGE == zh ]]; then say "$2"; else say "$1"; fi
}

# Ctrl-C, where no tool of ours is there to answer it, or after it has.
trap 'last_line "${0##*/}: stopped; give the same command again to go on: what was finished is kept" \
  "${0##*/}：已停止；再次运行同一条命令即可继续，已完成的部分会保留"; exit 130' INT

# Is $1 a Python we can use? It is run, not only looked up: pyenv puts up names of versions that are not chosen.
python_fits() {
  "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Print the first Python 3.11 or later on PATH.
find_python() {
  local candidate
  for candidate in python3 python3.12 python3.11 python3.13 python3.14 python; do
    if python_fits "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python 3.11 or later on PATH; install one, or set PYTHON=/path/to/python"
}

# Print the Python of the conda environment, making the environment where it is not there yet. Returns 1 where conda
# cannot make it.
conda_python() {
  local inside='import sys; print(sys.executable)' found
  if ! found=$(conda run -n "$CONDA_ENV" python -c "$inside" 2>/dev/null); then
    say "making the conda environment $CONDA_ENV ..."
    conda create -y -q -n "$CONDA_ENV" python=3.11 pip >>"$SETUP_LOG" 2>&1 || return 1
    found=$(conda run -n "$CONDA_ENV" python -c "$inside" 2>>"$SETUP_LOG") || return 1
  fi
  echo "$found"
}

# Print the Python of the virtual environment, making or mending it as needed.
venv_python() {
  local python=$VENV/bin/python base
  if ! { python_fits "$python" && "$python" -c 'import pip' 2>/dev/null; }; then
    base=$(find_python) || exit 1
    say "making a virtual environment in $VENV ..."
    "$base" -m venv --clear "$VENV" >>"$SETUP_LOG" 2>&1 ||
      die "$base cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv);" \
        "what it said is in $SETUP_LOG"
  fi
  echo "$python"
}

# Print the Python of an environment that set-up has made, or that PYTHON names; returns 1 where there is none.
ready_python() {
  local python=$VENV/bin/python prefix
  if [[ -n $PYTHON ]]; then
    python_fits "$PYTHON" && command -v "$PYTHON"
    return
  fi
  if command -v conda >/dev/null; then
    python=$(conda run -n "$CONDA_ENV" python -c 'import sys; print(sys.executable)' 2>/dev/null) || python=$VENV/bin/python
  fi
  python_fits "$python" || return 1
  prefix=$("$python" -c 'import sys; print(sys.prefix)')
  [[ -e $prefix/ga_layer_search.run ]] && echo "$python"
}

# Print what the installed state depends on, as one hash.
requirements_key() {
  "$PY" - "$ROOT" "$TORCH_INDEX_URL" <<'EOF'
import hashlib, pathlib, sys

key = hashlib.sha256("\0".join([sys.version, *sys.argv[1:]]).encode())
names = "constraints.txt", "requirements.txt", "requirements-cluster.txt", "requirements-dev.txt"
for name in ("pyproject.toml", *names):
    key.update(pathlib.Path(sys.argv[1], name).read_bytes())
print(key.hexdigest())
EOF
}

# Run pip quietly: pip_install WHAT_FAILED ARGUMENT...; where it fails, show the end of what it said. Byte code is made
# when a module is first used, which most of these never are: --no-compile saves a minute.
pip_install() {
  local what_failed=$1
  shift
  if ! "$PY" -m pip install --disable-pip-version-check --no-input --no-compile "$@" >>"$SETUP_LOG" 2>&1; then
    say "--- the end of $SETUP_LOG"
    tail -n 15 -- "$SETUP_LOG" >&2
    die "$what_failed, then run this again: it goes on from here"
  fi
}

# Install what the requirements list, and this project itself, unless that was done before. $1: run, cluster or dev.
install_requirements() {
  local prefix key flavour failed_index list=requirements.txt flavours=("$1")
  local failed="installing failed; see above for why (no network? disk full?)"
  [[ -z $PYTHON ]] || return 0
  case $1 in
    cluster) list=requirements-cluster.txt ;;
    dev) list=requirements-dev.txt flavours=(run cluster dev) ;; # it contains the others
  esac
  prefix=$("$PY" -c 'import sys; print(sys.prefix)')
  key=$(requirements_key)
  [[ $(cat -- "$prefix/ga_layer_search.$1" 2>/dev/null) != "$key" ]] || return 0
  say "installing what $list lists into $prefix (once; minutes; how far: tail -f $SETUP_LOG) ..."
  if [[ -n $TORCH_INDEX_URL ]]; then
    failed_index="torch could not be had from TORCH_INDEX_URL=$TORCH_INDEX_URL, which could not be reached or lacks it"
    pip_install "$failed_index; check it or unset it (SETUP.md, Mirrors)" \
      --index-url "$TORCH_INDEX_URL" "$(grep '^torch==' "$ROOT/requirements.txt")"
  fi
  pip_install "$failed" -r "$ROOT/$list"
  pip_install "$failed" --no-deps --no-build-isolation -e "$ROOT"
  for flavour in "${flavours[@]}"; do
    echo "$key" >"$prefix/ga_layer_search.$flavour"
  done
}

# Wait until no other set-up of this folder runs; the lock is held on descriptor 9 until release_lock.
# Python takes it, for Python is what every machine here has; a lock belongs to the open file, so it stays with us.
take_lock() {
  local python
  [[ -z $PYTHON ]] || return 0 # an environment that is not ours to change
  python=$(find_python)
  exec 9>"$ROOT/.setup.lock" || die "cannot write in $ROOT; make it writable, or set PYTHON to a ready interpreter"
  "$python" -c '
import fcntl, sys

for how in fcntl.LOCK_NB, 0:
    try:
        fcntl.flock(9, fcntl.LOCK_EX | how)
        break
    except BlockingIOError:
        print("another set-up is running here; waiting for it ...", file=sys.stderr, flush=True)
    except OSError as error:  # Lustre may be mounted without locks
        print(f"the disk of this folder has no locks ({error.strerror}): start one set-up at a time", file=sys.stderr)
        break
'
}
release_lock() {
  [[ -n $PYTHON ]] || exec 9>&-
}

# Set PY to the Python to use, making its environment where it is not there yet.
make_environment() {
  if [[ -n $PYTHON ]]; then
    python_fits "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or later"
    PY=$(command -v "$PYTHON")
    return
  fi
  : >"$SETUP_LOG"
  if command -v conda >/dev/null && PY=$(conda_python); then
    python_fits "$PY" || die "the conda environment $CONDA_ENV has a Python older than 3.11;" \
      "remove it (conda env remove -n $CONDA_ENV) or choose another name (CONDA_ENV=...)"
  else
    PY=$(venv_python)
  fi
}

# All of the set-up; afterwards PY is ready. $1: run, or dev for the tools of the checks as well; cluster, after run, for
# what several workers need.
set_up() {
  take_lock
  [[ $1 == cluster ]] || make_environment
  install_requirements "$1"
  release_lock
}

# Become a module of ours: become_tool MODULE [ARGUMENT...]. It is found from any folder, and nothing in the caller's
# folder can stand in for it or for what it imports (-P).
become_tool() { PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} exec "$PY" -P -m "$@"; }

# Run such a module.
tool() { (become_tool "$@"); }

# Print the value that option $1 has in the arguments after it; nothing where it is not among them.
option_value() {
  local option=$1 value=""
  shift
  while (($#)); do
    case $1 in
      "$option") value=${2:-} ;;
      "$option"=*) value=${1#*=} ;;
    esac
    shift
  done
  echo "$value"
}

# Is one of the options $1, which are separated by spaces, among the arguments after it?
has_option() {
  local wanted=" $1 " word
  shift
  for word; do
    [[ $wanted != *" ${word%%=*} "* ]] || return 0
  done
  return 1
}

MODELS="--pair --base --donor"
DEVICES="--gpu --gpus --cpu-workers --ray-address"
IN_FILE=()

# Set IN_FILE to the options that the file of --config stands for, where that is among the arguments.
read_settings_file() {
  local file
  file=$(option_value --config "$@")
  [[ -n $file ]] || return 0
  file=$(tool model_preparation.pair_facts settings --config "$file") || exit
  mapfile -t IN_FILE <<<"$file"
}

# Set PAIR to the name of the pair that the arguments say (--pair, --base, --donor), else the environment or config.sh,
# else IN_FILE, else the GPU.
choose_pair() {
  local option value options=() said=("$@")
  [[ -n $PAIR$BASE$DONOR ]] || has_option "$MODELS" "$@" || said=("${IN_FILE[@]}")
  for option in $MODELS; do
    value=$(option_value "$option" "${said[@]}")
    [[ -z $value ]] || options+=("$option" "$value")
  done
  PAIR=$(PAIR=$PAIR BASE=$BASE DONOR=$DONOR tool model_preparation.pair_facts name "${options[@]}") || exit
}

# Print what pair $1 is called in names of files: pairs of one's own hold slashes.
file_name_of() { echo "${1//[^A-Za-z0-9._-]/_}"; }

# Print where the donor's layers of pair $1 lie, or should: in the usual place, unless those of another donor are there.
layers_dir_for() {
  local folder=$ROOT/extracted_llama_layers donor
  if [[ -e $folder/metadata.json ]]; then
    donor=$(tool model_preparation.pair_facts donor --pair "$1") || exit
    grep -qF "\"source\": \"$donor\"" "$folder/metadata.json" || folder=${folder}_$(file_name_of "$1")
  fi
  echo "$folder"
}

# Print the help of a script that searches: search_usage WHAT_IT_DOES.
search_usage() {
  cat <<EOF
usage: scripts/${0##*/} [OPTION...]

$1 The result lies in
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
  scripts/${0##*/} --pair tiny --dry-run
  scripts/${0##*/} --pair llamba-8b --max-hours 12 --output-dir results/mine
  scripts/${0##*/} --pair tiny --seed 3 --print-config

Settings (config.sh; the environment wins): PAIR BASE DONOR GPUS PYTHON CONDA_ENV VENV TORCH_INDEX_URL
EOF
}

# Become a search: become_search PRESET [ARGUMENT...]; a later argument of the same name wins, and the preset is behind
# all that is said. It writes to results/real_<timestamp>.
# A signal to the script then is a signal to the search, which stops in good order.
# The settings of a file (--config) stand behind the arguments and behind PAIR, BASE, DONOR and GPUS.
become_search() {
  local preset=$1
  shift
  read_settings_file "$@"
  has_option --preset "${IN_FILE[@]}" || set -- --preset "$preset" "$@"
  # An evaluator of one's own brings its model along, and who joins a run takes everything from there.
  if ! has_option "--evaluator --join" "${IN_FILE[@]}" "$@"; then
    if ! has_option "$DEVICES" "$@"; then
      case $GPUS in
        auto) ;;
        *,*) set -- --gpus "$GPUS" "$@" ;;
        *) set -- --gpu "$GPUS" "$@" ;;
      esac
    fi
    if ! has_option "$MODELS" "$@"; then
      choose_pair "$@"
      set -- --pair "$PAIR" "$@"
    fi
  fi
  ! has_option "--gpus --cpu-workers --ray-address" "${IN_FILE[@]}" "$@" || set_up cluster
  become_tool genetic_algorithm.run_search "$@"
}

# Show searches: show_runs progress|results [ARGUMENT...]. Any Python will do; a later --dir wins.
show_runs() {
  local python what=$1
  shift
  python=${PYTHON:-$(find_python)}
  PYTHONPATH=$ROOT/scripts exec "$python" -P -m run_folders "$what" --dir "$ROOT/results" "$@"
}
