# shellcheck shell=bash
# Settings of the scripts, with their defaults. What the environment says wins: PAIR=tiny ./DEPLOY_TEST.sh
# Every script reads this file through scripts/lib.sh, which knows ROOT, the folder this file lies in.

# Base and donor: a name of the zoo (tiny, llamba-8b, ...), BASE:DONOR, or a pair file (ARCHITECTURE.md tells how to
# write one). Empty: llamba-8b where a GPU of 24 GB or more is, else tiny.
: "${PAIR:=}"

# A model instead of that pair's base or donor, or both without a pair: a folder, org/name, hf:org/name or ms:org/name
# (@revision after an id). Options of a command (--pair, --base, --donor) put all three settings out of force.
: "${BASE:=}"
: "${DONOR:=}"

# GPUs to use, comma separated, counted within CUDA_VISIBLE_DEVICES; of several, each gets a worker of a search (which
# needs Ray), other tools run on the first. Or cpu; or auto: the first GPU where there is one, else the CPU.
: "${GPUS:=auto}"

# An interpreter (3.11 or later) that already has what requirements.txt lists. It is used as it is: nothing is
# installed. Empty: the scripts make an environment of their own, see the next two.
: "${PYTHON:=}"

# The conda environment to make and use where conda is ...
: "${CONDA_ENV:=ga_layer_search}"

# ... and the virtual environment to make and use where it is not.
: "${VENV:=$ROOT/.venv}"

# A package index for torch alone, such as PyTorch's own for one CUDA version or for CPU only. Empty: pip's usual index.
# pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CACHE_DIR, ...) work as always.
: "${TORCH_INDEX_URL:=}"

# Where models come from and where they are kept is read by the hub libraries themselves and never changed here:
#   MODELSCOPE_CACHE  folder of models from ModelScope       [the library's: under ~/.cache]
#   HF_HOME           folder of models from Hugging Face     [the library's: under ~/.cache]
#   HF_ENDPOINT       a mirror of Hugging Face               [none]
#   HF_TOKEN          for gated models; use none with a mirror
#   HF_HUB_OFFLINE    1: ask no server, use what is there    [0]
