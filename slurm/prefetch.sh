#!/usr/bin/env bash
# Fetch model and data and tokenize them, on the login node, which has a network where the compute nodes have none.
#
#   export HF_HOME=/shared/huggingface      # a folder that all nodes see
#   slurm/prefetch.sh                       # the flags of train_sst2.py that the job will have
#   HF_HUB_OFFLINE=1 sbatch slurm/train.sh
#
# SST2_PYTHON and SST2_CONTAINER (a .sif file) as in slurm/train.sh.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

"$here/python.sh" -m sst2.prefetch "$@"
echo "slurm/prefetch.sh: once more, as the compute nodes will see it"
HF_HUB_OFFLINE=1 "$here/python.sh" -m sst2.prefetch "$@"
echo "slurm/prefetch.sh: ready: export HF_HUB_OFFLINE=1${HF_HOME:+ HF_HOME=$HF_HOME} and submit with the same flags"
