#!/usr/bin/env bash
# Fine-tune on any number of nodes, preempted and requeued as often as the cluster likes.
#
#   sbatch slurm/train.sh --output_dir /shared/runs/first --checkpointing_steps 500
#   sbatch --nodes 4 --gpus-per-node 8 --partition preemptible slurm/train.sh --global_batch_size 1024
#   SST2_CONFIG=deepspeed_zero3 sbatch --nodes 2 --gpus-per-node 4 slurm/train.sh
#
# What stands before slurm/train.sh goes to sbatch, and wins over the lines below; what stands after it goes to
# train_sst2.py. The run's folder must be one that all nodes see; without --output_dir it is runs/JOBNAME-JOBID in the
# folder that the job was submitted from.

#SBATCH --job-name=sst2
#SBATCH --nodes=1               # hosts; each gets one launcher, which starts a process for every GPU of the job there
#SBATCH --ntasks-per-node=1     # that launcher
#SBATCH --cpus-per-task=2       # cores for all processes of a node; without GPUs, as many as there are
#SBATCH --time=04:00:00         # the limit after which the job stops, saves, and is requeued
#SBATCH --signal=USR1@120       # asks for that 120 s earlier: at least twice the time of a step and a checkpoint
#SBATCH --requeue               # a preempted job, and one whose node has failed, comes back
#SBATCH --open-mode=append      # to the same output
#SBATCH --output=%x-%j.out      # name and id of the job

# Settings beyond sbatch's, as variables of the environment:
#   SST2_PYTHON       the interpreter with the project installed (the project's .venv, or python)
#   SST2_CONTAINER    run in a container: a .sif file (apptainer), or an image for pyxis (docker://… or a .sqsh file)
#   SST2_MOUNTS       folders to see in it besides the project, the submit folder and HF_HOME: /data,/shared/runs
#   SST2_CONFIG       a name in accelerate_configs/, or a YAML file; default: single_* or multi_node, by what is here
#   SST2_PROCESSES    processes on each node (its GPUs, or 1)
#   SST2_PORT         where the processes meet (from the job's id, the next one that is free)
#   SST2_INTERFACE    network interface between the nodes (the one that leads to the first node)
#   SST2_REQUEUES     how often the job may come back (100)
#   SST2_PROJECT      the project's folder (the one that this script was submitted from)
#   SST2_SWEEP        flags of one array task a line; slurm/sweep.sh fills it

set -euo pipefail
# A signal to the whole job reaches this shell too. It must outlive it, to requeue.
stopped=no
trap 'stopped=yes' TERM USR1 USR2 INT

say() { echo "slurm/train.sh: $*"; }
fact() { scontrol show --oneliner "$1" "$2" | sed -n "s/.* $3=\([^ ]*\).*/\1/p"; }

if [ -z "${SLURM_JOB_ID:-}" ]; then
    say "error: this is a batch script: sbatch slurm/train.sh" >&2
    exit 2
fi
# A task of an array goes by its number in it: one of them has the id of the whole array, and so of all tasks.
id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
id=${id:-$SLURM_JOB_ID}
script=$(fact job "$id" Command) # SLURM runs a copy of it from a folder of its own
export SST2_PROJECT=${SST2_PROJECT:-$(cd "$SLURM_SUBMIT_DIR" && realpath "$(dirname "$script")/..")}
if [ ! -f "$SST2_PROJECT/train_sst2.py" ]; then
    say "error: no train_sst2.py in $SST2_PROJECT: give the project's folder as SST2_PROJECT" >&2
    exit 2
fi
restarts=${SLURM_RESTART_COUNT:-0}
cap=${SST2_REQUEUES:-100}
give_up() {
    say "error: requeued $cap times (SST2_REQUEUES): stopping for good; the last checkpoint is whole" >&2
    exit 1
}
[ "$restarts" -le "$cap" ] || give_up

# Who meets where. The address is the one by which SLURM itself reaches the node: names need not be known everywhere.
export SST2_HEAD SST2_OTHER SST2_PORT
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
SST2_HEAD=$(fact node "$(head -n 1 <<< "$nodes")" NodeAddr)
SST2_OTHER=$(fact node "$(tail -n 1 <<< "$nodes")" NodeAddr)
if [ -z "${SST2_PORT:-}" ]; then
    SST2_PORT=$((10000 + SLURM_JOB_ID % 20000)) # below those that systems hand out by themselves
    while (: < "/dev/tcp/$SST2_HEAD/$SST2_PORT") 2> /dev/null; do SST2_PORT=$((SST2_PORT + 1)); done
fi

# How many processes, and under which configuration.
processes=${SST2_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
world=$((processes * SLURM_NNODES))
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then kind=gpu precision=bf16; else kind=cpu precision=no; fi
if [ "$world" -gt 1 ]; then config=multi_node; else config=single_$kind; fi
config=${SST2_CONFIG:-$config}
[ -f "$config" ] || config=$SST2_PROJECT/accelerate_configs/${config%.yaml}.yaml
launch=(--config_file "$config" --num_processes "$world" --num_machines "$SLURM_NNODES")
launch+=(--main_process_ip "$SST2_HEAD" --main_process_port "$SST2_PORT" --deepspeed_multinode_launcher standard)
[ -n "${SST2_CONFIG:-}" ] || launch+=(--mixed_precision "$precision")

# The flags of this start. One that follows another goes on with what is there.
flags=()
resumes=yes
for flag in "$@"; do
    case $flag in
        --overwrite_output_dir | --resume_from_checkpoint*)
            if [ "$restarts" -eq 0 ]; then resumes=no; fi # as the user says
            if [ "$restarts" -gt 0 ] && [ "$flag" = --overwrite_output_dir ]; then continue; fi
            ;;
    esac
    flags+=("$flag")
done
if [ -n "${SST2_SWEEP:-}" ]; then
    read -ra more < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" <<< "$SST2_SWEEP")
    flags+=("${more[@]}")
fi
case " ${flags[*]} " in
    *" --output_dir"*) ;;
    *) flags+=(--output_dir "runs/$SLURM_JOB_NAME-$id") ;;
esac
[ "$resumes" = no ] || flags+=(--resume_from_checkpoint auto)

say "job $id, start $((restarts + 1)), $SLURM_NNODES nodes, $world processes, $SST2_HEAD:$SST2_PORT"

# Tasks that have stopped do not end within the same second: with --kill-on-bad-exit, the first one's 75 would kill
# those that still say goodbye, and their code would be another. --wait is how long the last one may still work, on an
# upload for one; and longer than SLURM takes to see that a node is lost (SlurmdTimeout), which the others see at once.
# Without a binding, all cores of the job serve all processes; sbatch does not pass --cpus-per-task on to srun.
step=(--kill-on-bad-exit=0 --wait=900 --cpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
step+=(--export=ALL) # what this script has set, also where jobs start with --export=NONE
case ${SST2_CONTAINER:-} in
    "" | *.sif) ;; # apptainer is started by slurm/python.sh
    *)
        mounts=$SST2_PROJECT:$SST2_PROJECT,$PWD:$PWD
        for folder in ${HF_HOME:-} ${SST2_MOUNTS:+${SST2_MOUNTS//,/ }}; do mounts+=,$folder:$folder; done
        step+=(--container-image="$SST2_CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD")
        ;;
esac
code=75
if [ "$stopped" = no ]; then
    code=0
    srun "${step[@]}" bash "$SST2_PROJECT/slurm/node.sh" "${launch[@]}" "$SST2_PROJECT/train_sst2.py" "${flags[@]}" &
    while kill -0 $! 2> /dev/null; do
        wait $! && code=0 || code=$?
    done
fi

# A job that is still running was asked to stop by a signal or a file, and this script brings it back. One that SLURM has
# ended already comes back if it was preempted or requeued, and does not if somebody has cancelled it.
state=$(fact job "$id" JobState)
if [ "$code" -eq 75 ] && { [ "$state" = RUNNING ] || [ "$(fact job "$id" Reason)" = TimeLimit ]; }; then
    [ "$restarts" -lt "$cap" ] || give_up
    say "stopped with a checkpoint: requeueing"
    scontrol requeue "$id"
    sleep 60 # SLURM ends this shell; were it to end by itself before, the job would count as failed
elif [ "$code" -ne 0 ] && [ "$state" != RUNNING ]; then
    say "stopped by SLURM, exit code $code"
elif [ "$code" -ne 0 ]; then
    # again, below what srun has said of each task
    reason=$(awk '
        /^slurm\/train.sh: job/ { line = "" }
        /: error: / && !/^srun: / { line = $0 }
        END { print line }' "$(fact job "$id" StdOut)") || true
    say "exit code $code, not requeued: ${reason:-see above}" >&2
fi
exit "$code"
