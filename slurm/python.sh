#!/usr/bin/env bash
# The project's Python: SST2_PYTHON, else the project's .venv, else python; in SST2_CONTAINER if that is a .sif file.
# The other scripts call it; for anything else it does no harm: slurm/python.sh -m sst2.doctor
set -euo pipefail

project=${SST2_PROJECT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
command=()
python=${SST2_PYTHON:-python}
case ${SST2_CONTAINER:-} in
    *.sif)
        folders=$project,$PWD${HF_HOME:+,$HF_HOME}${SST2_MOUNTS:+,$SST2_MOUNTS}
        for folder in "${TMPDIR:-}" "${SLURM_TMPDIR:-}"; do # of the node, for --stage_dir
            if [ -d "$folder" ]; then folders+=,$folder; fi
        done
        command=(apptainer exec --bind "$folders" --pwd "$PWD")
        [ -z "${SLURM_GPUS_ON_NODE:-}" ] || command+=(--nv)
        command+=("$SST2_CONTAINER")
        ;;
    *)
        if [ -z "${SST2_PYTHON:-}" ] && [ -x "$project/.venv/bin/python" ]; then python=$project/.venv/bin/python; fi
        ;;
esac
if [ -n "${SST2_CONTAINER:-}" ]; then export PYTHONPATH=$project/src${PYTHONPATH:+:$PYTHONPATH}; fi
exec "${command[@]}" "$python" "$@"
