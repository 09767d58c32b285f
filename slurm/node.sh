#!/usr/bin/env bash
# What slurm/train.sh has srun start on each node: the launcher. What differs from node to node is read here; in the
# batch script, which runs on the first node alone, it would be the same for all. Not to be called by hand.
#
#   node.sh [flags of accelerate launch, the script, its flags]
set -euo pipefail

if [ "${SLURM_GPUS_ON_NODE:-}" != "$SST2_GPUS" ]; then
    echo "slurm/node.sh: error: ${SLURM_GPUS_ON_NODE:-no} GPUs on $(hostname), $SST2_GPUS on the first node: ask for" \
        "as many on each, by --gpus-per-node" >&2
    exit 2
fi

# The interface that leads to the first node, or, from there, to the last. NCCL uses InfiniBand whatever this says.
if [ -z "${SST2_INTERFACE:-}" ] && [ "$SLURM_NNODES" -gt 1 ]; then
    peer=$SST2_HEAD
    [ "$SLURM_NODEID" -ne 0 ] || peer=$SST2_OTHER
    address=$(getent ahosts "$peer" | awk 'NR == 1 { print $1 }') || true
    SST2_INTERFACE=$(ip -oneline route get "$address" 2> /dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p') || true
fi
if [ -n "${SST2_INTERFACE:-}" ]; then
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$SST2_INTERFACE}
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$SST2_INTERFACE}
fi
exec "$SST2_PROJECT/slurm/python.sh" -m sst2.launch --machine_rank "$SLURM_NODEID" "$@"
