#!/usr/bin/env bash
# A sweep as job arrays: trials, the best of them and the baseline on fresh seeds, and the tables. On the login node:
#
#   slurm/sweep.sh space.yaml
#   slurm/sweep.sh space.yaml --output_dir /shared/runs/sweep --at_once 16 -- --partition preemptible --gpus-per-node 1
#
# What stands behind -- goes to sbatch. It is python -m sst2.sweep --slurm by the project's Python; docs/sweep.md.
set -euo pipefail

exec "$(dirname "${BASH_SOURCE[0]}")/python.sh" -m sst2.sweep --slurm "$@"
