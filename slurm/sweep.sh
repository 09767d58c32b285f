#!/usr/bin/env bash
# Several seeds and learning rates as one job array, and a table of all of them when they are done. On the login node:
#
#   SST2_SEEDS="1 2 3 4 5" SST2_LEARNING_RATES="2e-5 5e-5" slurm/sweep.sh --num_train_epochs 3
#   slurm/sweep.sh --partition preemptible --gpus-per-node 1 -- --num_train_epochs 3
#
# With --, what stands before it goes to sbatch; the rest goes to train_sst2.py. Each task is slurm/train.sh, preempted
# and requeued by itself. The runs are runs/sweep/lr2e-5-seed1 and the like; the same sweep once more goes on with those
# that have not finished.
#
#   SST2_SEEDS            (1 2 3 4 5)
#   SST2_LEARNING_RATES   (2e-5)
#   SST2_AT_ONCE          tasks that run at the same time, at most (4)
#   SST2_SWEEP_DIR        folder of the runs and of the comparison (runs/sweep)
#   SST2_BASELINE         run that the others are tested against (none)
# and those of slurm/train.sh.
set -euo pipefail

options=()
case " $* " in
    *" -- "*)
        while [ "$1" != -- ]; do
            options+=("$1")
            shift
        done
        shift
        ;;
esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${SST2_SWEEP_DIR:-runs/sweep}
read -ra seeds <<< "${SST2_SEEDS:-1 2 3 4 5}"
read -ra rates <<< "${SST2_LEARNING_RATES:-2e-5}"
case $folder in
    *[[:space:]]*)
        echo "slurm/sweep.sh: error: SST2_SWEEP_DIR '$folder' has a space in it: name a folder without" >&2
        exit 2
        ;;
esac

SST2_SWEEP=
runs=()
for rate in "${rates[@]}"; do
    for seed in "${seeds[@]}"; do
        run=$folder/lr$rate-seed$seed
        runs+=("$run")
        SST2_SWEEP+="--learning_rate $rate --seed $seed --output_dir $run"$'\n'
    done
done
export SST2_SWEEP
array=$(sbatch --parsable --job-name=sweep --array="0-$((${#runs[@]} - 1))%${SST2_AT_ONCE:-4}" --output=%x-%A_%a.out \
    "${options[@]}" --export=ALL "$here/train.sh" "$@")
array=${array%%;*} # on a federation, the cluster's name follows
echo "slurm/sweep.sh: job $array: ${#runs[@]} tasks, ${SST2_AT_ONCE:-4} at once"

# When all have ended, well or not: the table says which have not finished. A task that is requeued has not ended.
compare=("$here/python.sh" -m sst2.compare "${runs[@]}" --output "$folder/comparison")
[ -z "${SST2_BASELINE:-}" ] || compare+=(--baseline "$SST2_BASELINE")
table=$(sbatch --parsable --job-name=compare --output=%x-%j.out "${options[@]}" --dependency="afterany:$array" \
    --export=ALL --array= --nodes=1 --ntasks=1 --time=00:15:00 --wrap "$(printf '%q ' "${compare[@]}")")
echo "slurm/sweep.sh: job ${table%%;*}: then the table, in $folder/comparison"
