"""The output folder: a run may begin, go on or overwrite there, or is refused before anything is touched."""

import os
from pathlib import Path
from typing import Any

from sst2.config.launcher import job_id
from sst2.config.settings import Settings, default_output_dir
from sst2.runs.origin import is_origin, origin
from sst2.runs.run_folder import is_run, job_of
from sst2.utils.errors import UserError

_NAMING = ("model_name_or_path", "smoke", "seed")  # what names a run's folder where --output_dir does not


def go_on_with_own_run(values: dict[str, Any]) -> None:
    """In a job that may start many times: go on with the run that an earlier start of the same job has begun.

    Until the job has made the folder its own, `--overwrite_output_dir` and `--resume_from_checkpoint` mean what they
    say, at every start. slurm/train.sh also says which folder the run has where no flag names one, and goes on with
    what is there where no flag says otherwise. The values of the flags are changed in place.
    """
    job, batch_job = job_id(), os.environ.get("SST2_BATCH_JOB")
    if not job:
        return
    if batch_job:
        values["output_dir"] = values["output_dir"] or os.environ.get("SST2_OUTPUT_DIR")
    folder = values["output_dir"] or default_output_dir(*(values[name] for name in _NAMING))
    is_own = job_of(Path(os.path.expanduser(folder))) == job
    if is_own or (batch_job and not (values["overwrite_output_dir"] or values["resume_from_checkpoint"])):
        values |= {"overwrite_output_dir": False, "resume_from_checkpoint": "auto"}


def has_begun_with_it(s: Settings) -> bool:
    """Whether the run in the folder is the one that began with the checkpoint of another run that is named again."""
    if s.resume_from_checkpoint in (None, "auto"):
        return False
    return is_origin(Path(str(s.resume_from_checkpoint)), s.run_dir / "checkpoints")


def check_run_dir(s: Settings) -> None:
    """Whether the run may work in its folder as it is now.

    Raises:
        UserError: something is in it that must not be touched.
    """
    run_dir, resume = s.run_dir, "auto" if has_begun_with_it(s) else s.resume_from_checkpoint
    for flag, place in (("output_dir", run_dir), ("resume_from_checkpoint", Path(resume or ""))):
        try:
            str(place).encode()
        except UnicodeEncodeError:
            raise UserError(f"--{flag} {place} is not UTF-8, as safetensors needs a folder to be: rename it") from None
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"--output_dir {run_dir} is a file: name a folder")
    if resume not in (None, "auto") and not Path(str(resume)).is_dir():
        raise UserError(f"--resume_from_checkpoint {resume} is not a folder: give a checkpoint's folder, or auto")
    if not run_dir.is_dir() or all(path.name.startswith(".") for path in run_dir.iterdir()):
        return  # hidden: what a start that was killed at once has left
    if (s.overwrite_output_dir or resume) and not (is_run(run_dir) or origin(run_dir / "checkpoints")):
        raise UserError(f"--output_dir {run_dir} holds no run, only other files: name another folder")
    if resume not in (None, "auto") and not Path(str(resume)).resolve().is_relative_to(run_dir.resolve()):
        raise UserError(f"--resume_from_checkpoint {resume} is not of the run in {run_dir}: name an empty folder")
    if not (s.overwrite_output_dir or resume):
        raise UserError(
            f"--output_dir {run_dir} is not empty: --resume_from_checkpoint auto goes on with it, "
            "--overwrite_output_dir replaces it, another --output_dir leaves it alone"
        )
