#!/usr/bin/env bash
# The whole road once: environment, models, layer extraction, search, checkpoint, its test, and a checked number.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: ./DEPLOY_TEST.sh [--pair NAME] [--base MODEL] [--donor MODEL] [--seed N]

From a fresh clone to a recovered, tested model. Sets up all it needs itself; asks nothing. Ends with lines that say
what was found and where, and with exit status 0 only if what was found is good: for the bundled pair, within 0.01
accuracy of the best of all layer sets, which a table that comes with it tells; for others, better than the base.

  --pair NAME    base and donor [llamba-8b with a GPU of 24 GB or more, else tiny, the bundled pair]
  --base MODEL   another base, --donor MODEL another donor: a folder or a hub id
  --seed N       of the search [0]

examples:
  ./DEPLOY_TEST.sh
  ./DEPLOY_TEST.sh --pair tiny --seed 3

Settings (config.sh; the environment wins): PAIR BASE DONOR GPUS PYTHON CONDA_ENV VENV TORCH_INDEX_URL
EOF
}

seed=0 options=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --pair | --base | --donor | --seed)
      [[ $# -ge 2 ]] || { usage >&2 && exit 2; }
      options+=("$1" "$2")
      [[ $1 != --seed ]] || seed=$2
      shift 2
      ;;
    --pair=* | --base=* | --donor=* | --seed=*)
      options+=("$1")
      [[ $1 != --seed=* ]] || seed=${1#*=}
      shift
      ;;
    *)
      echo "DEPLOY_TEST.sh: error: unknown argument $1" >&2
      usage >&2
      exit 2
      ;;
  esac
done

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/scripts/lib.sh"

# Whoever tells all of us to end, as docker and SLURM do, waits until the step that is running has stopped in good order.
trap 'exit 143' TERM

step=0
announce() {
  step=$((step + 1))
  printf '\n[%d/9] %s (%d s so far)\n' "$step" "$*" "$SECONDS"
}

announce "environment"
take_lock
make_environment
echo "Python: $PY"

announce "dependencies"
install_requirements run
release_lock
choose_pair "${options[@]}"

run=$ROOT/results/deploy_$(date +%Y%m%d_%H%M%S)
while [[ -e $run ]]; do run=${run}_; done # begun in the same second
layers=$(layers_dir_for "$PAIR")
checkpoint=$ROOT/model_checkpoints/deploy_test_$(file_name_of "$PAIR")
gpu=${GPUS%%,*}
one_layer=$(tool model_preparation.pair_facts one_layer --pair "$PAIR")
read -ra questions < <(tool model_preparation.pair_facts unseen_questions --pair "$PAIR")

announce "models: base and donor of the pair $PAIR"
# The last line of each tool, JSON for machines, is left out here: people have been told the same in words.
tool model_preparation.modelscope_utils --pair "$PAIR" >/dev/null

announce "the donor's layers, one file each"
tool model_preparation.extract_layers --pair "$PAIR" --output_dir "$layers" >/dev/null

announce "a first replacement: layer $one_layer, beside the base"
echo "This only shows that a replacement works; which layers are the best ones is for the search to find, the next step."
tool model_preparation.test_specific_combination --pair "$PAIR" --layers "$one_layer" --limit 50 --gpu_id "$gpu" \
  >/dev/null

announce "search"
# Without the language of last lines: the next step, which these two would name, is taken here.
GA_LANGUAGE="" tool genetic_algorithm.run_search --pair "$PAIR" --gpu "$gpu" --seed "$seed" --output-dir "$run" \
  >/dev/null
results=("$run"/search_result_*.json)

announce "a checkpoint of the best set found"
GA_LANGUAGE="" tool model_preparation.create_replaced_model_checkpoint --pair "$PAIR" --from_result "${results[0]}" \
  --llama_layers_dir "$layers" --output_dir "$checkpoint" --force --gpu "$gpu" >/dev/null

announce "the checkpoint's test"
tool model_preparation.test_checkpoint --checkpoint "$checkpoint" --full_eval "${questions[@]}" --gpu "$gpu" \
  >"$run/checkpoint_test.log"
tail -n 1 "$run/checkpoint_test.log" >"$run/checkpoint_test.json"

announce "the verdict"
status=0
tool model_preparation.check_deployment --pair "$PAIR" --result "${results[0]}" \
  --checkpoint "$checkpoint" --checkpoint_test "$run/checkpoint_test.json" --seconds "$SECONDS" || status=$?
if ((status == 0)); then
  last_line "DEPLOY_TEST.sh: open the report, $run/report.html; how to load the checkpoint: $checkpoint/README.txt" \
    "DEPLOY_TEST.sh：全部通过；报告：$run/report.html；checkpoint 的加载方法：$checkpoint/README.txt"
else
  last_line "DEPLOY_TEST.sh: not passed; the lines above say why" "DEPLOY_TEST.sh：未通过，原因见以上几行"
fi
exit "$status"
