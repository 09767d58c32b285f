#!/usr/bin/env bash
# Fine-tune on any number of nodes, preempted and requeued as often as the cluster likes.
#
#   sbatch slurm/train.sh --output_dir /shared/runs/first --checkpointing_steps 500
#   sbatch --nodes 4 --gpus-per-node 8 --cpus-per-task 16 slurm/train.sh --global_batch_size 1024
#   SST2_CONFIG=deepspeed_zero3 sbatch --nodes 2 --gpus-per-node 4 --cpus-per-task 8 slurm/train.sh
#
# What stands before slurm/train.sh goes to sbatch, and wins over the lines below; what stands after it goes to
# train_sst2.py. The run's folder must be one that all nodes see; without --output_dir it is runs/JOBNAME-JOBID in the
# folder that the job was submitted from.

#SBATCH --job-name=sst2
#SBATCH --nodes=1               # hosts; each gets one launcher, which starts a process for every GPU of the job there
#SBATCH --ntasks-per-node=1     # that launcher
#SBATCH --cpus-per-task=2       # cores for all processes of a node: two a GPU; without GPUs, all there are
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
#   SST2_MAX_RESTARTS how often all processes are started again within the job when one has died (0: the job fails)
#   SST2_PROJECT      the project's folder (the one that this script was submitted from)
#   SST2_SWEEP        folder of runs of a sweep, one for each task of the array; sst2 sweep sets it

# shellcheck disable=SC2329 # functions that patiently calls
set -euo pipefail

say() { echo "slurm/train.sh: $*"; }
refuse() {
    say "error: $*" >&2
    exit 2
}
# A controller that is busy, as when it preempts many jobs at once, answers at the third or tenth time.
patiently() {
    for _ in {1..12}; do
        if "$@"; then return 0; fi
        sleep 5
    done
    return 1
}
# One line, of this job alone: the id of an array's task may be that of the whole array, which lists them all.
record() { scontrol show --oneliner job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID "; }
word() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p"; }
path() { sed -n "s/.* $1=\(.*\)/\1/p" | sed 's/ [A-Z][A-Za-z:]*=.*//'; } # which may have spaces in it
address() { scontrol show --oneliner node "$1" | word NodeAddr | grep .; }

[ -n "${SLURM_JOB_ID:-}" ] || refuse "this is a batch script: sbatch slurm/train.sh"

# A signal to this shell must not end it: it is to requeue the job. One that came for it alone (--signal=B:USR1) goes on
# to the processes, which may be told twice.
stopped=no step=
trap 'stopped=yes' TERM INT
trap 'stopped=yes; [ -z "$step" ] || kill -s USR1 "$step" || true' HUP USR1 USR2 XCPU PWR

job=$(patiently record) || refuse "SLURM's controller does not answer: submit again"
task=$(word ArrayJobId <<< "$job")_$(word ArrayTaskId <<< "$job")
id=$SLURM_JOB_ID
if [ "$task" != _ ]; then id=$task; fi
restarts=$(word Restarts <<< "$job")

script=$(path Command <<< "$job") # SLURM runs a copy of it from a folder of its own
project() {
    cd "$SLURM_SUBMIT_DIR"
    while [ ! -f "$script" ] && [ "$script" != "${script% *}" ]; do script=${script% *}; done # flags follow it
    realpath "$(dirname "$script")/.."
}
export SST2_PROJECT=${SST2_PROJECT:-$(project)}
[ -f "$SST2_PROJECT/train_sst2.py" ] || refuse "no train_sst2.py in $SST2_PROJECT: give its folder as SST2_PROJECT"
for name in SST2_PROCESSES SST2_PORT SST2_REQUEUES SST2_MAX_RESTARTS; do
    case ${!name:-0} in *[!0-9]*) refuse "$name is ${!name}: give a number" ;; esac
done

cap=${SST2_REQUEUES:-100}
why="stopped on request" left="the last checkpoint is whole"
give_up() {
    say "error: requeued $cap times (SST2_REQUEUES), and now $why: stopping for good; $left" >&2
    exit 1
}
[ "$restarts" -le "$cap" ] || why="by SLURM" give_up

# Who meets where. The address is the one by which SLURM itself reaches the node: names need not be known everywhere.
export SST2_HEAD SST2_OTHER
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
SST2_HEAD=$(patiently address "$(head -n 1 <<< "$nodes")") || refuse "SLURM does not say where the first node is"
SST2_OTHER=$(patiently address "$(tail -n 1 <<< "$nodes")") || refuse "SLURM does not say where the last node is"
port=${SST2_PORT:-}
if [ -z "$port" ]; then
    port=$((10000 + SLURM_JOB_ID % 20000)) # below those that systems hand out by themselves
    while (: < "/dev/tcp/$SST2_HEAD/$port") 2> /dev/null; do port=$((port + 1)); done
fi

# How many processes, and under which configuration.
export SST2_GPUS=${SLURM_GPUS_ON_NODE:-}
processes=${SST2_PROCESSES:-${SST2_GPUS:-1}}
world=$((processes * SLURM_NNODES))
if [ -n "$SST2_GPUS" ]; then kind=gpu precision=bf16; else kind=cpu precision=no; fi
if [ "$world" -gt 1 ]; then config=multi_node; else config=single_$kind; fi
config=${SST2_CONFIG:-$config}
[ -f "$config" ] || config=$SST2_PROJECT/accelerate_configs/${config%.yaml}.yaml
[ -f "$config" ] || refuse "SST2_CONFIG is $SST2_CONFIG: give a YAML file, or one of $SST2_PROJECT/accelerate_configs"
launch=(--config_file "$config" --num_processes "$world" --num_machines "$SLURM_NNODES")
launch+=(--main_process_ip "$SST2_HEAD" --main_process_port "$port" --deepspeed_multinode_launcher standard)
launch+=(--max_restarts "${SST2_MAX_RESTARTS:-0}")
[ -n "${SST2_CONFIG:-}" ] || launch+=(--mixed_precision "$precision")

say "job $id, start $((restarts + 1)), $SLURM_NNODES nodes, $world processes, $SST2_HEAD:$port"

# Whether another process works on the run in a folder, as far as this node can see.
is_in_use() {
    local busy=0
    [ ! -e "$1/.lock" ] || flock --shared --nonblock --conflict-exit-code 99 "$1/.lock" true || busy=$?
    [ "$busy" -eq 99 ]
}
# Until nobody does, in this start, since the job may come back SST2_REQUEUES times only; but for a quarter of an hour in
# all, since its nodes are idle meanwhile. False if that is over, or if a signal has come, which ends the pause.
looks=90
wait_for_end() {
    while [ "$stopped" = no ] && [ "$looks" -gt 0 ]; do
        looks=$((looks - 1))
        sleep 10 &
        wait "$!" || kill "$!" 2> /dev/null || true
        is_in_use "$1" || return 0
    done
    return 1
}

flags=("$@")
run= # of a sweep: its folder
if [ -n "${SST2_SWEEP:-}" ] && [ "$task" != _ ]; then
    # Its folder and flags, or nothing if nothing is left to do; with 75, the folder of a run that is in use.
    ask() {
        code=0
        lines=$("$SST2_PROJECT/slurm/python.sh" -m sst2.sweep "$SST2_SWEEP" --start "${task#*_}") || code=$?
    }
    ask
    if [ "$code" -eq 75 ]; then say "$lines is in use by another process: waiting 15 minutes at most for its end"; fi
    while [ "$code" -eq 75 ] && wait_for_end "$lines"; do ask; done
    # Any other code has been explained above. With 2, another start would end the same way. The rest comes of a disk or
    # a node that is not well, which may pass, or of a Python that never starts: five starts in a row are enough, by
    # what the output says of each.
    if [ "$code" -ne 0 ] && [ "$code" -ne 75 ] && [ "$stopped" = no ]; then
        [ "$code" -ne 2 ] || exit 2
        say "sst2 sweep did not say which run task ${task#*_} is: exit code $code"
        failures=$(awk '
            /^slurm\/train.sh: job / { if (!failed) count = 0; failed = 0 }
            /^slurm\/train.sh: sst2 sweep did not say which run/ { count++; failed = 1 }
            END { print count + 0 }' "$(path StdOut <<< "$job")") || failures=0
        if [ "$failures" -ge 5 ] || [ "$restarts" -ge "$cap" ]; then exit "$code"; fi
    fi
    if [ "$code" -ne 0 ]; then
        if [ "$stopped" = no ] && [ "$code" -eq 75 ]; then
            why="$lines is in use by another process" left="when that has ended, the command of the sweep goes on"
        elif [ "$stopped" = no ]; then
            why="not started"
        fi
        stopped=yes # and so requeued below
    elif [ -z "$lines" ]; then
        say "nothing left to do for task ${task#*_} of $SST2_SWEEP"
        exit 0
    else
        mapfile -t lines <<< "$lines"
        run=${lines[0]}
        flags+=("${lines[@]:1}")
    fi
fi
# For train_sst2.py: its folder where nothing names one, and that a folder which this job has begun is gone on with.
export SST2_OUTPUT_DIR="runs/$SLURM_JOB_NAME-$id" SST2_BATCH_JOB=$SLURM_JOB_ID

if [ "${SLURM_CPUS_ON_NODE:-$processes}" -lt "$processes" ]; then
    say "$SLURM_CPUS_ON_NODE cores for $processes processes slow each other down: --cpus-per-task $((2 * processes))"
fi

# Tasks that have stopped do not end within the same second: with --kill-on-bad-exit, the first one's 75 would kill
# those that still say goodbye, and their code would be another. --wait is how long the last one may still work, on an
# upload for one; and longer than SLURM takes to see that a node is lost, which the others see at once: a job that has
# ended by then would not be requeued. Without --cpus-per-task and a binding, all cores of the job serve all processes.
patience=$(scontrol show config | sed -n 's/^SlurmdTimeout *= *\([0-9]*\).*/\1/p') || true
srun=(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=0)
srun+=(--wait="$((${patience:-300} + 600))" --cpu-bind=none)
srun+=(--export=ALL) # what this script has set, also where jobs start with --export=NONE
case ${SST2_CONTAINER:-} in
    "" | *.sif) ;; # apptainer is started by slurm/python.sh
    *)
        mounts=$SST2_PROJECT:$SST2_PROJECT,$PWD:$PWD
        IFS=, read -ra folders <<< "${SST2_MOUNTS:-}"
        for folder in ${HF_HOME:+"$HF_HOME"} "${folders[@]}"; do mounts+=,$folder:$folder; done
        srun+=(--container-image="$SST2_CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD")
        export SST2_PYTHON=${SST2_PYTHON:-python} # the image's, not the project's .venv
        ;;
esac
unset SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK SLURM_TRES_PER_TASK # some versions of srun take it for --cpus-per-task
code=75
if [ "$stopped" = no ]; then
    "${srun[@]}" bash "$SST2_PROJECT/slurm/node.sh" "${launch[@]}" "$SST2_PROJECT/train_sst2.py" "${flags[@]}" &
    step=$!
    while kill -0 "$step" 2> /dev/null; do wait "$step" || true; done # which a signal interrupts
    wait "$step" && code=0 || code=$?
fi
case $code in
    # Stopped before it could listen, so that nothing is lost.
    129 | 130 | 138 | 140 | 143 | 152 | 158) code=75 ;; # 128 + HUP INT USR1 USR2 TERM XCPU PWR
esac
# A run that another process has begun meanwhile was refused, and has not failed: when requeued, this job waits for it.
if [ "$code" -ne 0 ] && [ -n "$run" ] && is_in_use "$run"; then
    code=75 why="$run is in use by another process" left="when that has ended, the command of the sweep goes on"
fi

# A job that is still running was asked to stop by a signal or a file, and this script brings it back. One that SLURM
# has ended already comes back if it was preempted or requeued, and does not if somebody has canceled it.
is_mine_to_requeue() {
    until job=$(patiently record); do say "SLURM's controller does not answer: asking again"; done
    [ "$(word JobState <<< "$job")" = RUNNING ] || [ "$(word Reason <<< "$job")" = TimeLimit ]
}
requeue() { ! is_mine_to_requeue || scontrol requeue "$id"; }

if [ "$code" -eq 0 ]; then
    exit 0
elif ! is_mine_to_requeue; then
    say "stopped by SLURM, exit code $code"
elif [ "$code" -eq 75 ]; then
    [ "$restarts" -lt "$cap" ] || give_up
    say "$why: requeueing" # with a checkpoint, or before there was anything to save
    if patiently requeue; then
        sleep 60 # SLURM ends this shell; were it to end by itself before, the job would count as failed
    else
        say "error: could not be requeued: the same sbatch line with the same --output_dir goes on" >&2
    fi
else
    # again, below what srun has said of each task
    reason=$(awk '
        /^slurm\/train.sh: job/ { line = "" }
        /: error: / && !/^srun: / { line = $0 }
        END { print line }' "$(path StdOut <<< "$job")") || true
    say "exit code $code, not requeued: ${reason:-see above}" >&2
    [ -z "$run" ] || echo "$code" > "$run.exit"
fi
exit "$code"
