#!/usr/bin/env bash
# Fine-tune on any number of nodes, preempted and requeued as often as the cluster likes.
#
#   sbatch slurm/train.sh --output_dir /shared/runs/first --checkpointing_steps 500
#   sbatch --nodes 4 --gpus-per-node 8 --partition preemptible slurm/train.sh --global_batch_size 1024
#
# What stands before slurm/train.sh goes to sbatch, and wins over the lines below; what stands after it goes to
# train_sst2.py. The run's folder must be one that all nodes see; without --output_dir it is runs/JOBNAME-JOBID.

#SBATCH --job-name=sst2
#SBATCH --nodes=1               # hosts; each gets one launcher, which starts a process for every GPU that it sees
#SBATCH --ntasks-per-node=1     # that launcher
#SBATCH --time=04:00:00         # the limit after which the job stops, saves, and is requeued
#SBATCH --signal=USR1@120       # asks for that 120 s earlier: at least twice the time of a step and a checkpoint
#SBATCH --requeue               # a preempted job, and one whose node has failed, comes back
#SBATCH --open-mode=append      # to the same output
#SBATCH --output=%x-%j.out      # name and id of the job

# Settings beyond sbatch's, as variables of the environment:
#   SST2_PYTHON       the interpreter with the project installed (python)
#   SST2_CONFIG       YAML file for accelerate; default: single_* or multi_node of accelerate_configs, by what is here
#   SST2_PROCESSES    processes on each node (its GPUs, or 1)
#   SST2_PORT         where the processes meet (from the job's id)
#   SST2_INTERFACE    network interface between the nodes (NCCL and gloo find one)
#   SST2_REQUEUES     how often the job may come back (100)

set -euo pipefail

python=${SST2_PYTHON:-python}
project=${SST2_PROJECT:-$PWD}
restarts=${SLURM_RESTART_COUNT:-0}
cap=${SST2_REQUEUES:-100}
processes=${SST2_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
world=$((processes * SLURM_NNODES))
port=${SST2_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# where SLURM itself reaches the node, which need not be known to others by its name
head=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')

if [ "$restarts" -gt "$cap" ]; then
    echo "slurm/train.sh: requeued $cap times (SST2_REQUEUES): stopping for good; the last checkpoint is whole" >&2
    exit 1
fi
if [ -n "${SST2_INTERFACE:-}" ]; then
    export NCCL_SOCKET_IFNAME=$SST2_INTERFACE GLOO_SOCKET_IFNAME=$SST2_INTERFACE
fi

if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then kind=gpu precision=bf16; else kind=cpu precision=no; fi
if [ "$world" -gt 1 ]; then name=multi_node; else name=single_$kind; fi
config=${SST2_CONFIG:-$project/accelerate_configs/$name.yaml}
launch=(--config_file "$config" --num_processes "$world" --num_machines "$SLURM_NNODES")
launch+=(--main_process_ip "$head" --main_process_port "$port" --deepspeed_multinode_launcher standard)
[ -n "${SST2_CONFIG:-}" ] || launch+=(--mixed_precision "$precision")

flags=("$@")
case " $* " in
    *" --output_dir"*) ;;
    *) flags+=(--output_dir "runs/$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}") ;;
esac
flags+=(--resume_from_checkpoint auto)

echo "slurm/train.sh: job $SLURM_JOB_ID, start $((restarts + 1)), $SLURM_NNODES nodes, $world processes, $head:$port"

# A signal to the whole job reaches this shell too. It must outlive it, to requeue.
trap : TERM USR1 USR2 INT
code=0
# Tasks that have stopped do not end within the same second: with --kill-on-bad-exit, the first one's 75 would kill those
# that still say goodbye, and their code would be another. --wait ends what a lost task leaves behind.
# SLURM_NODEID differs from node to node, so it is read there, not here.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=0 --wait=60 bash -c 'exec "$0" -m sst2.launch --machine_rank "$SLURM_NODEID" "$@"' \
    "$python" "${launch[@]}" "$project/train_sst2.py" "${flags[@]}" &
step=$!
while kill -0 "$step" 2>/dev/null; do
    wait "$step" && code=0 || code=$?
done

if [ "$code" -eq 75 ]; then
    if [ "$restarts" -ge "$cap" ]; then
        echo "slurm/train.sh: requeued $cap times (SST2_REQUEUES): stopping for good; the last checkpoint is whole" >&2
        exit 1
    fi
    echo "slurm/train.sh: stopped with a checkpoint: requeueing"
    scontrol requeue "$SLURM_JOB_ID" || true # which a preempted job is already
    sleep 60 # SLURM ends this shell; were it to end by itself before, the job would count as failed
fi
exit "$code"
