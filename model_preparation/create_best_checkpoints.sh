#!/usr/bin/env bash
# Checkpoints of the best known layer sets of a pair.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: model_preparation/create_best_checkpoints.sh [--pair NAME] [--output_dir DIR] [--force]

Makes a checkpoint of each of the best known layer sets of one to four layers, in DIR/<pair>_replaced_<layers>:
for llamba-8b the published ones, for the bundled pair those of its landscape.json. A checkpoint that is there is kept;
--force makes it again. Layers are extracted first where they are not.

  --pair NAME       [llamba-8b with a GPU of 18 GB or more, else tiny]
  --output_dir DIR  [model_checkpoints]

Settings (config.sh; the environment wins): PAIR PYTHON CONDA_ENV VENV TORCH_INDEX_URL
EOF
}

# shellcheck source=scripts/lib.sh
source "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/../scripts/lib.sh"

output=$ROOT/model_checkpoints force=() asked=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --pair)
      asked=("$1" "${2:?--pair needs a name}")
      shift
      ;;
    --output_dir | --output-dir)
      output=$(realpath -m -- "${2:?--output_dir needs a folder}")
      shift
      ;;
    --force) force=(--force) ;;
    *)
      echo "create_best_checkpoints.sh: error: unknown argument $1; --help lists the options" >&2
      exit 2
      ;;
  esac
  shift
done

set_up run
choose_pair "${asked[@]}"
layers_dir=$(layers_dir_for "$PAIR")

# One line per checkpoint: layers|score or nothing|description
case $PAIR in
  llamba-8b)
    prefix=llamba_replaced
    best='17|0.514|best published single layer (MMLU, 50 questions per subject)
13 17|0.554|best published two layers (MMLU, 50 questions per subject)
13 16 17|0.566|published three layers (MMLU, 50 questions per subject)
11 13 17 21|0.570|published four layers (MMLU)
10 14 17 30||published four layers, another choice'
    ;;
  tiny)
    prefix=tiny_replaced
    best=$("$PY" - "$ROOT/models/tiny_pair/landscape.json" <<'EOF'
import json, sys

landscape = json.load(open(sys.argv[1], encoding="utf-8"))
sizes = {}
for name, right in landscape["sets"].items():
    size = 0 if name == "none" else name.count("+") + 1
    if size and right > sizes.get(size, ("", -1))[1]:
        sizes[size] = (name, right)
for size, (name, right) in sorted(sizes.items()):
    share = right / landscape["questions"]
    print(f"{name.replace('+', ' ')}||the best of all sets of {size}: {share:.4f} on all search questions")
EOF
    )
    ;;
  *) die "no best layer sets are known for the pair $PAIR; search for them, then use --from_result" ;;
esac

tool model_preparation.extract_layers --pair "$PAIR" --output_dir "$layers_dir" >/dev/null
while IFS='|' read -r layers score description; do
  target=$output/${prefix}_${layers// /_}
  if [[ -e $target/checkpoint_info.json && ${#force[@]} -eq 0 ]]; then
    say "$target is there; kept"
    continue
  fi
  read -ra indices <<<"$layers"
  tool model_preparation.create_replaced_model_checkpoint --pair "$PAIR" --layers "${indices[@]}" \
    --llama_layers_dir "$layers_dir" --output_dir "$target" --description "$description" \
    ${score:+--score "$score"} "${force[@]}" </dev/null
done <<<"$best"
