#!/usr/bin/env bash
# TensorBoard on a node of the cluster, seen through a tunnel from your own machine.
#
#   sbatch slurm/tensorboard.sh runs        # and read the tunnel's command in tensorboard-JOBID.out
#   slurm/tensorboard.sh runs               # on the login node, where that is allowed
#
# It listens on the node's loopback alone: TensorBoard asks nobody for a password. Who has an account on the same node
# can see it all the same.

#SBATCH --job-name=tensorboard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.out      # name and id of the job

# Settings, as variables of the environment:
#   SST2_TENSORBOARD_PORT   on the node (6006 and a number of the job or user, the next one that is free)
#   SST2_LOGIN              user@host that ssh reaches from outside (you, at the host that the job was submitted from)
#   SST2_PYTHON, SST2_CONTAINER (a .sif file) as in slurm/train.sh
set -euo pipefail

folder=${1:-runs}
if [ ! -d "$folder" ]; then
    echo "slurm/tensorboard.sh: error: $folder is not a folder: name the one that holds the runs" >&2
    exit 2
fi
here=$(dirname "${BASH_SOURCE[0]}")
if [ ! -f "$here/python.sh" ]; then # under sbatch, which runs a copy of the script from a folder of SLURM's own
    script=$(scontrol show --oneliner job "$SLURM_JOB_ID" | sed -n 's/.* Command=\(.*\)/\1/p')
    cd "$SLURM_SUBMIT_DIR"
    while [ ! -f "$script" ] && [ "$script" != "${script% *}" ]; do script=${script% *}; done # words follow it
    here=$(realpath "$(dirname "$script")")
fi
port=${SST2_TENSORBOARD_PORT:-}
if [ -z "$port" ]; then
    port=$((6006 + ${SLURM_JOB_ID:-$(id -u)} % 1000))
    while (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do port=$((port + 1)); done
fi

login=${SST2_LOGIN:-$(id -un)@${SLURM_SUBMIT_HOST:-$(hostname)}}
jump="$login"
if [ -n "${SLURM_JOB_ID:-}" ]; then jump="-J $login $(id -un)@$(hostname)"; fi
echo "slurm/tensorboard.sh: on your own machine:  ssh -N -L 6006:127.0.0.1:$port $jump"
echo "slurm/tensorboard.sh: and in its browser:   http://127.0.0.1:6006"
exec "$here/python.sh" -m tensorboard.main --logdir "$folder" --host 127.0.0.1 --port "$port"
