"""A resumed run knows model and data by content, and does without the base model: the checkpoint has what is needed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from safetensors.torch import load_file, save_file

from sst2.runs.run_folder import RunFolder
from tests.support.running import Finished

Train = Callable[..., Finished]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """One that a test may move and change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def job(small_job: list[Any], model: Path) -> list[Any]:
    """Ten steps, and a checkpoint after five."""
    return [*small_job, "--model_name_or_path", model, "--max_train_steps", 10, "--checkpointing_steps", 5]


def go_back(run: Finished) -> None:
    """Have the run be where it was after step 5."""
    shutil.rmtree(run.run_dir / "checkpoints" / "step-00000010")
    shutil.rmtree(run.run_dir / "model")


def exported(run: Finished) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run.run_dir / "model").iterdir())}


def test_a_run_goes_on_when_its_base_model_is_gone(train_here: Train, job: list[Any], model: Path) -> None:
    run = train_here(*job)
    assert run.code == 0, run.stderr
    before = exported(run)
    go_back(run)
    shutil.rmtree(model)
    run = train_here(*job, "--resume_from_checkpoint", "auto")
    assert run.code == 0, run.stderr
    after = exported(run)
    assert after == before


def test_another_name_for_the_same_model_goes_on(
    train_here: Train, job: list[Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train_here(*job, "--model_name_or_path", "./model")
    shutil.copytree(model, tmp_path / "elsewhere" / "copy")
    (tmp_path / "link").symlink_to(model)
    before = exported(run)["model.safetensors"]
    for name in ("./model/", model, f"{model}/", tmp_path / "elsewhere" / "copy", "link"):
        go_back(run)
        run = train_here(*job, "--model_name_or_path", name, "--resume_from_checkpoint", "auto")
        assert run.code == 0, run.stderr
        assert exported(run)["model.safetensors"] == before


def test_a_run_that_began_with_a_checkpoint_of_any_name_goes_on_from_it(
    train_here: Train, job: list[Any], tmp_path: Path
) -> None:
    first = train_here(*job, run_dir=tmp_path / "first")
    shutil.copytree(first.run_dir / "checkpoints" / "step-00000005", tmp_path / "ck")
    (tmp_path / "latest").symlink_to(first.run_dir / "checkpoints" / "step-00000005")
    for name in ("ck", "latest"):
        flags = [*job, "--resume_from_checkpoint", tmp_path / name]
        run = train_here(*flags, run_dir=tmp_path / f"of-{name}")
        assert run.code == 0, run.stderr
        go_back(run)
        (run.run_dir / "metrics.json").unlink()
        run = train_here(*flags, run_dir=run.run_dir)  # as after a kill before its own first checkpoint
        assert run.code == 0, run.stderr
        assert f"resuming from {run.run_dir}/checkpoints/step-00000005" in run.stderr
        assert exported(run)["model.safetensors"] == exported(first)["model.safetensors"]
        go_back(run)
        (run.run_dir / "metrics.json").unlink()
        shutil.rmtree(run.run_dir / "checkpoints" / "step-00000005")
        run = train_here(*flags, run_dir=run.run_dir)
        assert run.code == 2, run.stderr
        assert f"of a run that began with {tmp_path / name}: begin with that once more" in run.stderr
        assert not (run.run_dir / "model").exists()


def test_a_finished_run_needs_neither_its_checkpoints_nor_its_base_model(
    train_here: Train, job: list[Any], model: Path, tmp_path: Path
) -> None:
    first = train_here(*job, run_dir=tmp_path / "first")
    of_another = ["--resume_from_checkpoint", first.run_dir / "checkpoints" / "step-00000005"]
    second = train_here(*job, *of_another, run_dir=tmp_path / "second")
    assert second.code == 0, second.stderr
    shutil.rmtree(model)
    for run, flags in ((first, ["--resume_from_checkpoint", "auto"]), (second, of_another)):
        for checkpoint in (run.run_dir / "checkpoints").glob("step-*"):
            shutil.rmtree(checkpoint)  # to save room
        before = exported(run)
        again = train_here(*job, *flags, run_dir=run.run_dir)
        assert again.code == 0, again.stderr
        assert f"the run in {run.run_dir} has finished already" in again.stderr
        other = train_here(*job, *flags, "--model_name_or_path", tmp_path / "nowhere", run_dir=run.run_dir)
        assert other.code == 2, other.stderr
        assert "its run has finished with other settings" in other.stderr
        assert exported(run) == before
    (first.run_dir / "metrics.json").unlink()
    lost = train_here(*job, "--resume_from_checkpoint", "auto", run_dir=first.run_dir)
    assert lost.code == 2, lost.stderr
    assert f"--model_name_or_path {model} does not exist as a folder" in lost.stderr


def another_weight(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["embeddings.LayerNorm.weight"][0] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def another_activation(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"activation": "relu"}))


@pytest.mark.parametrize("change", [another_weight, another_activation])
def test_another_model_is_refused_whatever_its_name(
    change: Callable[[Path], None], train_here: Train, job: list[Any], model: Path, tmp_path: Path
) -> None:
    run = train_here(*job)
    other = Path(shutil.copytree(model, tmp_path / "other" / "model"))
    change(other)
    go_back(run)
    run = train_here(*job, "--model_name_or_path", other, "--resume_from_checkpoint", "auto")
    assert run.code == 2
    (line,) = [line for line in run.stderr.splitlines() if "error: " in line]
    assert f"--model_name_or_path {other} (--model_revision main) is another model than " in line
    assert f"give --model_name_or_path {model} --model_revision main to go on" in line
    assert not (run.run_dir / "model").exists()


def test_a_data_set_may_move_as_well(
    train_here: Train, job: list[Any], tsv_files: tuple[Path, Path], tmp_path: Path
) -> None:
    splits = {
        name: datasets.Dataset.from_dict({"sentence": ["a gripping film", "a dull mess"] * 32, "label": [1, 0] * 32})
        for name in ("train", "validation")
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    flags = [flag for flag in job if flag not in ("--train_file", "--validation_file", *tsv_files)]
    run = train_here(*flags, "--dataset_name", tmp_path / "saved")
    assert run.code == 0, run.stderr
    go_back(run)
    (tmp_path / "saved").rename(tmp_path / "moved")
    run = train_here(*flags, "--dataset_name", tmp_path / "moved", "--resume_from_checkpoint", "auto")
    assert run.code == 0, run.stderr


def test_a_model_that_is_nowhere_is_named(train_here: Train, job: list[Any], tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for flags in (["--resume_from_checkpoint", "auto"], []):
        run = train_here(*job, "--model_name_or_path", nowhere, *flags)
        assert run.code == 2
        assert f"--model_name_or_path {nowhere} does not exist as a folder" in run.stderr
        assert "Traceback" not in run.stderr
        assert not run.run_dir.exists()


def test_nothing_is_trained_from_a_checkpoint_that_goes_meanwhile(
    train_here: Train, job: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_here(*job)

    def lock(folder: RunFolder, check_stop: Callable[[], object], lock: Any = RunFolder.lock) -> None:
        lock(folder, check_stop)
        shutil.rmtree(folder.checkpoints)  # as if by the job that has had it until now

    monkeypatch.setattr(RunFolder, "lock", lock)
    run = train_here(*job, "--resume_from_checkpoint", "auto")
    assert run.code == 2
    assert "step-00000010 is gone meanwhile: start again" in run.stderr
