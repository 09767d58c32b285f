#!/usr/bin/env bash
# What is worth knowing of this project on a GPU, what is worth most first. The limits of all parts add up to 20
# minutes: PARTS and SECONDS_IN_ALL choose.
#
#     benchmarks/on_a_gpu.sh OUT_DIR
#     SMALL=1 benchmarks/on_a_gpu.sh OUT_DIR     # a trial with tiny sizes, on two idle cores too, in two minutes
#
# Takes `python` from PATH. Each part has its own limit in seconds, a part that fails does not end the others, and what
# it has found by then is in OUT_DIR: at most eight files. summary.txt has a line a part, log.txt what the parts said.
# Variables: SECONDS_IN_ALL (default 590); SST2_DATA_DIR and SST2_MODEL_DIR, without which accuracy is left out;
# PARTS, the names of those to run (default: all); TEST_PYTHONPATH, packages for the tests alone, such as DeepSpeed.
set -uo pipefail
: "${1:?usage: benchmarks/on_a_gpu.sh OUT_DIR}"
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "$0")/.." || exit 2

seconds_in_all=${SECONDS_IN_ALL:-590}
scratch=$(mktemp -d) fast=$scratch
trap 'rm -rf "$scratch" "$fast"' EXIT
# Where only weights count, not seconds, checkpoints of a gigabyte go to memory, if it has 30 GB to spare.
if [ "$(df --output=avail /dev/shm 2> /dev/null | tail -n 1)" -gt 30000000 ] 2> /dev/null; then
    fast=$(mktemp -d -p /dev/shm)
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TMPDIR="$scratch"
export TORCHINDUCTOR_CACHE_DIR="$scratch/inductor" TRITON_CACHE_DIR="$scratch/triton"  # compile times are cold ones
log="$out/log.txt" summary="$out/summary.txt"
: > "$log"
printf '%-22s %5s %8s\n' part exit seconds > "$summary"
failures=0

# A part that was cut leaves jobs in sessions of their own, which would take the cores from the next one: by TMPDIR.
end_leftovers() {
    local pids
    pids=$(grep -lsz "^TMPDIR=\($scratch\|$fast\)$" /proc/[0-9]*/environ | cut -d/ -f3)
    # shellcheck disable=SC2086  # one word a process
    kill -KILL $pids 2> /dev/null || true
}

# part NAME LIMIT COMMAND...: run it, for LIMIT seconds at most and no longer than there is time in all.
part() {
    local name=$1 limit=$2 began=$SECONDS code=0 left
    shift 2
    if [ -n "${PARTS:-}" ] && [[ " $PARTS " != *" $name "* ]]; then return; fi
    left=$((seconds_in_all - SECONDS))
    if [ "$left" -lt 10 ]; then
        printf '%-22s %5s %8s\n' "$name" - "no time" | tee -a "$summary"
        return
    fi
    limit=$((limit * patience))
    if [ "$limit" -gt "$left" ]; then limit=$left; fi
    printf '\n===== %s: %s s at most: %s\n' "$name" "$limit" "$*" >> "$log"
    timeout --kill-after=3 "$limit" "$@" >> "$log" 2>&1 || code=$?
    end_leftovers
    if [ "$code" -ne 0 ]; then failures=$((failures + 1)); fi
    printf '%-22s %5s %8s\n' "$name" "$code" $((SECONDS - began)) | tee -a "$summary"
}

if [ -n "${SMALL:-}" ]; then
    small=(--small)
    tests=(tests/gpu/test_attention_on_gpu.py tests/gpu/test_cuda_graphs_on_gpu.py tests/gpu/test_split_graphs_on_gpu.py)
    timing=(--rounds 2 --steps 3 --warm_up 3) timing_1024=("${timing[@]}") steps=6 split_steps=30 epochs=1
    patience=8  # with cores that others use as well
    large=(plain_bf16 this_job_bf16_packed_split_graphs)  # the others have run at batch 32
    host=(--rounds 1 --steps 20 --warm_up 20) batch=64 seeds=(0) few=(--max_train_samples 64 --num_train_epochs 1 --max_eval_samples 64)
else
    small=() tests=(tests/gpu tests/kernels/test_block_kernels.py tests/kernels/test_adamw_kernel.py)
    timing=(--rounds 3 --steps 300 --warm_up 304) timing_1024=(--rounds 3 --steps 32 --warm_up 24) steps=60 split_steps=400 epochs=3
    large=(plain_bf16 trainer_bf16_grouped this_job_bf16_packed this_job_bf16_packed_split_graphs)
    patience=1 host=(--rounds 3 --steps 1000 --warm_up 200) batch=1024 seeds=(0 1 2) few=()
fi
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>> "$log"; then
    at_once=(-n 12 --dist worksteal)
    graphs=(trainer_bf16_grouped_compiled_graphs) triton=(this_job_bf16_packed_triton this_job_bf16_packed_split_graphs_triton)
    if [ -n "${SMALL:-}" ]; then graphs=() triton=(); fi  # the tiny model's heads are too narrow
elif [ -n "${SMALL:-}" ]; then
    echo "no GPU: a trial on the CPU" | tee -a "$summary"
    at_once=() graphs=() triton=()
else
    echo "no GPU: give SMALL=1 for a trial without one" | tee -a "$summary" >&2
    exit 2
fi

part card 60 python benchmarks/card.py
part tests 200 env -u SST2_FORBID_SKIPS PYTHONPATH="$PYTHONPATH${TEST_PYTHONPATH:+:$TEST_PYTHONPATH}" \
    python -m pytest "${tests[@]}" "${at_once[@]}" -v --durations=10
part batch_32 230 python benchmarks/throughput.py --output "$out/batch32.json" "${small[@]}" "${timing[@]}" \
    --ready_within $((120 * patience)) --only plain_bf16 trainer_bf16_grouped trainer_bf16_grouped_compiled "${graphs[@]}" \
    this_job_bf16_packed this_job_bf16_packed_split_graphs "${triton[@]}"
part split_steps 60 python benchmarks/split_steps.py --output "$out/split_steps.json" "${small[@]}" --steps "$split_steps"
part batch_1024 130 python benchmarks/throughput.py --output "$out/batch1024.json" "${small[@]}" "${timing_1024[@]}" \
    --batch_size "$batch" --ready_within $((55 * patience)) \
    --only "${large[@]}" "${triton[@]}"
part host_time 40 python benchmarks/host_time.py "${host[@]}"
part profile 40 python benchmarks/profile_steps.py "${small[@]}"
part whole_job 150 python benchmarks/whole_job.py --output "$out/whole_job.json" --epochs "$epochs" "${small[@]}"
part repeatability 150 env TMPDIR="$fast" python benchmarks/repeatability.py --output "$out/repeatability.json" --steps "$steps" \
    "${small[@]}"
if [ -n "${SST2_DATA_DIR:-}" ] && [ -n "${SST2_MODEL_DIR:-}" ]; then
    part accuracy 150 env TMPDIR="$fast" python benchmarks/seeds.py --output "$out/accuracy.json" --seeds "${seeds[@]}" -- "${few[@]}"
fi
echo "all: $failures failed, $SECONDS s" | tee -a "$summary"
exit $((failures > 0))
