"""A checkpoint brings everything back, or says in one line that it cannot; a kill at any moment leaves whole ones."""

import errno
import io
import json
import os
import pickle
import random
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import nn

from sst2.checkpoints.checkpointer import Checkpointer, load_weights
from sst2.checkpoints.folders import checkpoint_name, import_checkpoints, list_checkpoints
from sst2.checkpoints.random_states import random_state, restore_random_state
from sst2.checkpoints.resume_compatibility import FIXED_ON_RESUME, LENGTHS_FIXED_ON_RESUME
from sst2.checkpoints.training_state import ADDED_LATER, TrainingState
from sst2.config.flag_groups import SAMPLE
from sst2.config.settings import Settings
from sst2.data.splits import Split
from sst2.distributed.strategies import prepare
from sst2.training.optimizer import build_optimizer, build_schedule
from sst2.utils.atomic_folder import write_atomic_folder
from sst2.utils.checksums import verify_folder
from sst2.utils.errors import UserError
from tests.support.processes import kill_at_change, start
from tests.support.running import Bomb

SETTINGS = Settings(output_dir="/nonexistent", learning_rate=0.01, num_warmup_steps=3, max_train_steps=20)
OTHERS = {
    "label_names": ["spam", "ham"],
    **{"dropout": 0.2, "learning_rate": 0.02, "weight_decay": 0.5, "max_grad_norm": 2.0, "holdout_fraction": 0.1},
    **{"max_length": 64, "max_train_samples": 10, "max_eval_samples": 10, "global_batch_size": 64},
    **{"seed": 1, "batching": "padded", "class_weights": ["balanced"], "label_smoothing": 0.1},
    "metric_for_best_model": "loss",
}
CPU = torch.device("cpu")
NO_DATA: Mapping[str, Split] = {}


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Training:
    """A small model in training whose every step depends on all random states."""

    def __init__(self, accelerator: Accelerator, seed: int) -> None:
        set_seed(seed)
        self.accelerator = accelerator
        self.model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.strategy = prepare(accelerator, self.model, build_optimizer(self.model, SETTINGS))
        self.optimizer = self.strategy.optimizer
        self.schedule = build_schedule(self.optimizer, SETTINGS)
        self.state = TrainingState()

    def step(self) -> list[float]:
        scale = random.random() + np.random.random()
        loss = (self.model(torch.randn(16, 4)) * scale).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        self.state.count_step(16, 64, 64)
        self.state.add_measured(loss.item(), 16, 64, times={"waiting": 0.0}, seconds=0.1)
        return [loss.item(), rate]

    def checkpoints(
        self, folder: Path, settings: Settings = SETTINGS, splits: Mapping[str, Split] = NO_DATA
    ) -> Checkpointer:
        return Checkpointer(folder, self.accelerator, self.strategy, self.schedule, None, settings, splits)

    def save(self, folder: Path, limit: int = 2, splits: Mapping[str, Split] = NO_DATA) -> Path:
        checkpoints = self.checkpoints(folder, replace(SETTINGS, checkpoints_total_limit=limit), splits)
        checkpoints.save(self.state)
        checkpoints.wait()
        assert not checkpoints.has_failed
        return folder / checkpoint_name(self.state.step)

    def load(self, place: Path, settings: Settings = SETTINGS, splits: Mapping[str, Split] = NO_DATA) -> None:
        checkpoints = self.checkpoints(place.parent, settings, splits)
        found = checkpoints.find(str(place))
        assert found == place
        self.state = checkpoints.load(found)


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_been(accelerator: Accelerator, tmp_path: Path) -> None:
    training = Training(accelerator, seed=1)
    for _ in range(5):
        training.step()
    training.state.count_evaluation(0.9, 0.3)
    place = training.save(tmp_path)
    assert place == tmp_path / "step-00000005"
    assert len({path.stat().st_mode for path in place.iterdir()}) == 1  # readable for the same people
    weights = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    after = [training.step() for _ in range(5)]

    other = Training(accelerator, seed=2)
    other.step()
    other.load(place)
    for name, tensor in weights.items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
    assert (other.state.step, other.state.best_step, other.state.best_loss) == (5, 5, 0.3)
    # Losses depend on the draws of all three generators, on AdamW's moments and on the schedule.
    assert [other.step() for _ in range(5)] == after
    assert other.state == training.state
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name


def test_draws_continue_where_they_stood(accelerator: Accelerator, tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [random.gauss(0, 1), float(np.random.standard_normal()), torch.rand(1).item()]

    training = Training(accelerator, seed=3)
    draws()  # leaves half of a Gaussian pair behind, which is part of the state
    training.save(tmp_path)
    expected = draws()
    set_seed(4)
    training.load(tmp_path / "step-00000000")
    assert draws() == expected


def test_weights_alone_leave_the_rest_alone(accelerator: Accelerator, tmp_path: Path) -> None:
    training = Training(accelerator, seed=1)
    place = training.save(tmp_path)
    saved = load_file(place / "model.safetensors")
    training.step()
    random_state = torch.get_rng_state()
    load_weights(place, training.strategy)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in training.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert training.state.step == 1


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    return lambda file: file.write_text(json.dumps(change(json.loads(file.read_text()))))


def of_another_model(file: Path) -> None:
    save_file({name: tensor[:1].clone() for name, tensor in load_file(file).items()}, file)


def nothing_trained(file: Path) -> None:
    torch.save({}, file)


def with_moments_of(*shape: int) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        content = torch.load(file, weights_only=True)
        for moments in content["optimizer"]["state"].values():
            moments["exp_avg_sq"] = torch.zeros(shape)
        torch.save(content, file)

    return change


def with_moments_that_are_numbers(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    for moments in content["optimizer"]["state"].values():
        moments["exp_avg"] = 0.0
    torch.save(content, file)


def of_a_newer_version(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"training_state": content["training_state"] | {"invented_later": 1}}


def of_an_older_version(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"settings": {name: value for name, value in content["settings"].items() if name != "batching"}}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),  # what a crash of the host may leave
    "text": lambda file: file.write_text("hello"),
    "noise": lambda file: file.write_bytes(random.Random(0).randbytes(5000)),
}
CASES = [(file, name, damage) for file in ("state.json", "training.pt") for name, damage in DAMAGES.items()]
CASES += [("model.safetensors", name, damage) for name, damage in DAMAGES.items()]
CASES += [
    ("state.json", "no object", rewritten(lambda content: [])),
    ("state.json", "no settings", rewritten(lambda content: {"training_state": content["training_state"]})),
    ("training.pt", "without content", nothing_trained),
    ("training.pt", "with moments of another shape", with_moments_of(1)),
    ("training.pt", "with moments of a broken shape", with_moments_of(3, 5)),
    ("training.pt", "with moments that are no tensors", with_moments_that_are_numbers),
    ("model.safetensors", "of another model", of_another_model),
]


def seal(place: Path) -> None:
    """Write the manifest anew, as one would who damages on purpose."""
    content = {file.name: file.read_bytes() for file in place.iterdir() if file.name != "manifest.json"}

    def write_files(folder: Path) -> None:
        for name, data in content.items():
            (folder / name).write_bytes(data)

    write_atomic_folder(place, write_files)
    verify_folder(place)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(("file", "name", "damage"), CASES, ids=[f"{file} {name}" for file, name, _ in CASES])
def test_a_damaged_checkpoint_is_named(
    file: str, name: str, damage: Callable[[Path], object], sealed: bool, accelerator: Accelerator, tmp_path: Path
) -> None:
    training = Training(accelerator, seed=1)
    training.step()
    place = training.save(tmp_path)
    damage(place / file)
    if sealed:
        seal(place)
    with pytest.raises(UserError, match=f"(?s){place} cannot be read .*: name another checkpoint"):
        Training(accelerator, seed=2).load(place)


@pytest.mark.parametrize("change", [of_a_newer_version, of_an_older_version])
def test_a_checkpoint_of_another_version_is_told_from_a_damaged_one(
    change: Callable[[dict[str, Any]], dict[str, Any]], accelerator: Accelerator, tmp_path: Path
) -> None:
    training = Training(accelerator, seed=1)
    training.step()
    place = training.save(tmp_path)
    rewritten(change)(place / "state.json")
    seal(place)
    with pytest.raises(UserError, match=f"{place} was written by another version of this project: finish the run with"):
        Training(accelerator, seed=2).load(place)


def test_a_checkpoint_from_before_sweeps_and_slow_ranks_is_gone_on_from(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    training = Training(accelerator, seed=1)
    training.step()
    place = training.save(tmp_path)

    def strip(content: dict[str, Any]) -> dict[str, Any]:
        state = {name: value for name, value in content["training_state"].items() if name not in ADDED_LATER}
        assert len(state) == len(content["training_state"]) - len(ADDED_LATER)
        return content | {"training_state": state}

    rewritten(strip)(place / "state.json")
    seal(place)
    resumed = Training(accelerator, seed=2)
    resumed.load(place)
    assert resumed.state == training.state
    rewritten(lambda content: content["training_state"].pop("step") and content)(place / "state.json")
    seal(place)
    with pytest.raises(UserError, match="was written by another version of this project"):
        Training(accelerator, seed=2).load(place)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("file", ["training.pt", "model.safetensors", "state.json", "manifest.json"])
def test_a_pickle_that_would_run_code_is_refused_unopened(
    file: str, archive: bool, sealed: bool, accelerator: Accelerator, tmp_path: Path
) -> None:
    training, crater = Training(accelerator, seed=1), tmp_path / "crater"
    place = training.save(tmp_path)
    content: dict[str, Any] = torch.load(place / "training.pt", weights_only=True) | {"scaler": Bomb(crater)}
    stream = io.BytesIO()
    torch.save(content, stream) if archive else pickle.dump(content, stream, protocol=2)
    (place / file).write_bytes(stream.getvalue())
    if sealed and file != "manifest.json":
        seal(place)
    stream.seek(0)
    torch.load(stream, weights_only=False) if archive else pickle.load(stream)
    assert crater.exists()  # it works where it is let
    crater.unlink()
    with pytest.raises(UserError, match=f"{place} cannot be read"):
        training.load(place)
    assert not crater.exists()


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Lets the writer begin when it is set."""
    go = threading.Event()

    def write_later(place: Path, write_files: Callable[[Path], None]) -> None:
        go.wait()
        write_atomic_folder(place, write_files)

    monkeypatch.setattr("sst2.checkpoints.rescue.write_atomic_folder", write_later)
    return go


def test_training_goes_on_while_a_checkpoint_is_written(
    accelerator: Accelerator, tmp_path: Path, held_back: threading.Event
) -> None:
    training = Training(accelerator, seed=1)
    training.step()
    checkpoints = training.checkpoints(tmp_path)
    for step in (1, 4):
        place = tmp_path / checkpoint_name(step)
        held_back.clear()
        checkpoints.save(training.state)  # the second into the host memory of the first
        after = [training.step() for _ in range(3)]  # changes the very tensors that are being saved
        assert not place.exists()
        held_back.set()
        checkpoints.wait()
        other = Training(accelerator, seed=2)
        other.load(place)
        assert [other.step() for _ in range(3)] == after
        training.load(place)  # the generators are those of the whole process
        assert [training.step() for _ in range(3)] == after


def test_the_next_save_waits_for_the_last(accelerator: Accelerator, tmp_path: Path, held_back: threading.Event) -> None:
    training = Training(accelerator, seed=1)
    checkpoints = training.checkpoints(tmp_path)
    checkpoints.save(training.state)
    training.step()
    threading.Timer(0.5, held_back.set).start()
    checkpoints.save(training.state)
    assert (tmp_path / "step-00000000").exists()
    checkpoints.wait()
    first, second = checkpoints.take_times()
    assert (first.step, second.step) == (0, 1)
    assert second.pause > 0.4  # the first one's writing was waited for
    assert 0 < first.pause < first.total
    assert second.pause < second.total
    assert checkpoints.take_times() == []


def test_what_is_saved_already_is_not_saved_again(accelerator: Accelerator, tmp_path: Path) -> None:
    training = Training(accelerator, seed=1)
    training.step()
    checkpoints = training.checkpoints(tmp_path)

    def saves() -> int:
        checkpoints.save(training.state)
        checkpoints.wait()
        return len(checkpoints.take_times())

    assert [saves(), saves()] == [1, 0]
    training.state.count_evaluation(0.5, 0.5)  # the same step, and yet another state
    assert [saves(), saves()] == [1, 0]
    training = Training(accelerator, seed=2)
    checkpoints = training.checkpoints(tmp_path)
    training.state = checkpoints.load(tmp_path / "step-00000001")
    assert training.state.evaluated_step == 1
    assert saves() == 0


def test_a_checkpoint_amid_an_evaluation_between_others(accelerator: Accelerator, tmp_path: Path) -> None:
    training = Training(accelerator, seed=1)
    checkpoints = training.checkpoints(tmp_path)
    for _ in range(2):
        training.step()
        with torch.no_grad():
            checkpoints.save(training.state)
        training.step()
        checkpoints.save(training.state)
    checkpoints.wait()
    assert not checkpoints.has_failed
    after = training.step()
    training.load(tmp_path / "step-00000004")
    assert training.step() == after


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed saves are tried again without a pause."""
    monkeypatch.setattr("sst2.checkpoints.rescue.SECONDS_BEFORE_RETRIES", (0.0, 0.0))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What $TMPDIR names."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def break_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing below this folder gets to disk any more."""

    def fsync(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(folder):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("rescued", [True, False])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_save_that_fails_is_an_error_that_names_another_place_and_the_last_good_one(
    earlier: bool,
    rescued: bool,
    accelerator: Accelerator,
    tmp_path: Path,
    temporary: Path,
    at_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training, folder = Training(accelerator, seed=1), tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    checkpoints = training.checkpoints(folder)
    ending = "there is no earlier one"
    if earlier:
        checkpoints.save(training.state)
        checkpoints.wait()
        assert not checkpoints.has_failed
        ending = f"the last good checkpoint is {folder / 'step-00000000'}"
    break_disk(folder if rescued else tmp_path, monkeypatch)
    training.step()
    checkpoints.save(training.state)
    checkpoints.wait()
    assert checkpoints.has_failed
    message = str(checkpoints.failure())
    assert message.startswith(
        f"checkpoint {folder / 'step-00000001'} could not be written ([Errno 5] Input/output error): "
    )
    assert message.endswith(f"; {ending}")
    assert len(checkpoints.take_times()) == earlier  # the failed one is not counted
    assert ("it is saved in " in message) == rescued
    assert any(temporary.iterdir()) == rescued
    if rescued:
        (place,) = temporary.glob("sst2-rescued-*/step-00000001")
        assert f"it is saved in {place} on {socket.gethostname()} instead: --resume_from_checkpoint" in message
        after = training.step()
        training.load(place)
        assert training.step() == after


@pytest.mark.parametrize("readable", [True, False])
def test_the_best_checkpoint_is_rescued_with_the_last(
    readable: bool,
    accelerator: Accelerator,
    tmp_path: Path,
    temporary: Path,
    at_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training, folder = Training(accelerator, seed=1), tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    training.step()
    training.state.count_evaluation(0.9, 0.3)
    best = training.save(folder)
    if not readable:
        (best / "model.safetensors").unlink()
    training.step()
    with monkeypatch.context() as patch:
        break_disk(folder, patch)
        checkpoints = training.checkpoints(folder, replace(SETTINGS, load_best_model_at_end=True))
        checkpoints.save(training.state)
        checkpoints.wait()
    message = str(checkpoints.failure())
    (place,) = temporary.glob("sst2-rescued-*/step-00000002")
    assert (f"if you copy {best} beside it before" in message) == (not readable)
    import_checkpoints(place, tmp_path / "another" / "checkpoints", 2, training.state.best_step)
    adopted = [path.name for path in list_checkpoints(tmp_path / "another" / "checkpoints")]
    assert adopted == ["step-00000001"] * readable + ["step-00000002"]


def test_a_disk_that_fails_once_is_tried_again(
    accelerator: Accelerator, tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]

    def fsync(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        if answers:
            raise answers.pop()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    training = Training(accelerator, seed=1)
    training.step()
    training.load(training.save(tmp_path))
    assert answers == []


def test_a_run_whose_folder_is_gone_is_saved_elsewhere(
    accelerator: Accelerator, tmp_path: Path, temporary: Path, at_once: None
) -> None:
    training, run_dir = Training(accelerator, seed=1), tmp_path / "run"
    run_dir.mkdir()
    checkpoints = training.checkpoints(run_dir / "checkpoints")
    checkpoints.save(training.state)
    checkpoints.wait()
    shutil.rmtree(run_dir)
    training.step()
    checkpoints.save(training.state)
    checkpoints.wait()
    (place,) = temporary.glob("sst2-rescued-*/step-00000001")
    assert f"could not be written ([Errno 2] No such file or directory: '{run_dir}'): " in str(checkpoints.failure())
    assert f"it is saved in {place} on " in str(checkpoints.failure())
    training.load(place)
    assert not run_dir.exists()  # a folder with a checkpoint and nothing else would be taken for no run


@pytest.mark.parametrize("file", ["training.pt", "state.json"])
def test_what_the_disk_has_answered_is_said_whatever_library_was_writing(
    file: str, accelerator: Accelerator, tmp_path: Path, temporary: Path, at_once: None
) -> None:
    """Any write to /dev/full answers ENOSPC, on every file system."""
    training = Training(accelerator, seed=1)
    real = write_atomic_folder

    def with_a_full_disk(place: Path, write_files: Callable[[Path], None]) -> None:
        def write_to_it(folder: Path) -> None:
            (folder / file).symlink_to("/dev/full")
            write_files(folder)

        real(place, write_to_it)

    checkpoints = training.checkpoints(tmp_path / "checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sst2.checkpoints.rescue.write_atomic_folder", with_a_full_disk)
        checkpoints.save(training.state)
        checkpoints.wait()
    assert "could not be written ([Errno 28] No space left on device" in str(checkpoints.failure())
    assert list(temporary.iterdir()) == []  # what could not be rescued leaves nothing behind


def test_what_is_copied_from_another_run_needs_room_as_well(accelerator: Accelerator, tmp_path: Path) -> None:
    training, there = Training(accelerator, seed=1), tmp_path / "there"
    for _ in range(3):
        training.step()
        training.save(there, limit=9)
    training.state.best_step = 1
    place = there / "step-00000003"
    expected = sum(
        file.stat().st_size for file in there.rglob("*") if file.is_file() and file.parent.name != "step-00000002"
    )
    assert training.checkpoints(tmp_path / "here").bytes_to_write(place, training.state) == expected
    assert training.checkpoints(there).bytes_to_write(place, training.state) == 0
    assert training.checkpoints(tmp_path / "here").bytes_to_write(None, TrainingState()) == 0


def test_what_to_resume_from_is_looked_for_as_asked(accelerator: Accelerator, tmp_path: Path) -> None:
    training = Training(accelerator, seed=1)
    checkpoints = training.checkpoints(tmp_path)
    assert checkpoints.find("auto") is None
    assert checkpoints.find(None) is None
    for _ in range(3):
        training.step()
        training.save(tmp_path, limit=9)
    (tmp_path / ".step-00000009.unfinished").mkdir()  # a kill has struck
    (tmp_path / "step-00000003" / "training.pt").unlink()
    assert checkpoints.find(None) is None
    assert checkpoints.find("auto") == tmp_path / "step-00000002"
    assert not list(tmp_path.glob(".*"))  # cleared away
    assert checkpoints.find(str(tmp_path / "step-00000001")) == tmp_path / "step-00000001"
    for name, reason in (("step-00000003", "training.pt cannot be read"), ("step-00000004", "it is missing")):
        with pytest.raises(UserError, match=rf"--resume_from_checkpoint: .*{name} cannot be read \({reason}"):
            checkpoints.find(str(tmp_path / name))
    (tmp_path / "run").mkdir()
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "run" / "checkpoints" / "step-00000002")
    with pytest.raises(UserError, match=r"/run is a run, not a checkpoint: give .*/run/checkpoints/step-00000002$"):
        checkpoints.find(str(tmp_path / "run"))


def test_other_sentences_are_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    def split(name: str, label: int) -> Split:
        return Split(name, ["a", "b"], np.array([0, label]), np.array([7, 8], dtype=np.int32), np.array([0, 1, 2]))

    training = Training(accelerator, seed=1)
    splits = {"train": split("train", 1), "validation": split("validation", 1), "test": split("test", 1)}
    place = training.save(tmp_path, splits=splits)
    training.load(place, splits=splits | {"test": split("test", 0)})  # which decides nothing
    for name in ("train", "validation"):
        with pytest.raises(UserError, match=f"{place} was trained with other sentences or labels: give the same data"):
            training.load(place, splits=splits | {name: split(name, 0)})
    longer = replace(SETTINGS, max_train_steps=30)  # as more sentences make it: they are the reason
    with pytest.raises(UserError, match="was trained with other sentences or labels"):
        training.load(place, longer, splits | {"train": split("train", 0)})


def words(value: Any) -> str:
    """As on the command line."""
    return " ".join(value) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("name", [name for name in FIXED_ON_RESUME if name != "smoke"])
def test_a_setting_that_would_make_it_another_run_is_refused(
    name: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    training = Training(accelerator, seed=1)
    place = training.save(tmp_path)
    saved: Any = getattr(SETTINGS, name)
    other: Any = OTHERS.get(name, "another")
    with pytest.raises(UserError) as refused:
        training.load(place, replace(SETTINGS, **{name: other}))
    way_out = f"leave --{name} out" if saved is None else f"give --{name} {words(saved)}"
    message = f"--{name} is {words(other)} but {place} was trained with {words(saved)}: {way_out} to go on, "
    assert str(refused.value) == message + "or start a new run in another --output_dir"


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"max_train_steps": 30}, "--max_train_steps 30 makes 30 optimizer steps"),
        ({"num_train_epochs": 5.0}, "--num_train_epochs 5 makes 30 optimizer steps"),
        ({}, "--num_train_epochs 3 makes 30 optimizer steps"),  # by default
        ({"max_train_steps": 30, "num_train_epochs": 5.0}, "--max_train_steps 30 makes 30 optimizer steps"),
    ],
)
def test_another_length_is_refused_in_the_name_of_the_flag_that_was_given(
    given: dict[str, Any], flag: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    training = Training(accelerator, seed=1)
    place = training.save(tmp_path)
    changed = replace(SETTINGS, output_dir=str(tmp_path), given=given, **given | {"max_train_steps": 30})
    message = f"{flag}, but the run of {place} has 20, which its learning rates follow from: give --max_train_steps 20"
    with pytest.raises(UserError) as refused:
        training.load(place, changed)
    assert str(refused.value) == f"{message} to go on; or start a new run in another --output_dir"
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError) as refused:
        training.load(place, changed)
    further = f"--model_name_or_path {tmp_path / 'model'} in another --output_dir"
    assert str(refused.value) == f"{message} to go on; to train its model further, start one with {further}"


def test_a_longer_warm_up_is_refused_in_the_name_of_the_flag_that_was_given(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    training = Training(accelerator, seed=1)
    place = training.save(tmp_path)
    for given, flag in (
        ({"warmup_ratio": 0.25}, "--warmup_ratio 0.25"),
        ({"num_warmup_steps": 5}, "--num_warmup_steps 5"),
    ):
        with pytest.raises(UserError, match=f"^{flag} makes 5 .* has 3, .*: give --num_warmup_steps 3 to go on"):
            training.load(place, replace(SETTINGS, given=given, **given | {"num_warmup_steps": 5}))


def test_a_run_of_the_sample_is_told_by_the_flag_that_asks_for_it(accelerator: Accelerator, tmp_path: Path) -> None:
    training = Training(accelerator, seed=1)
    place = training.save(tmp_path)
    with pytest.raises(UserError, match=r"^--smoke is True but .* with False: give --smoke False to go on"):
        training.load(place, replace(SETTINGS, smoke=True, model_name_or_path=SAMPLE, dataset_name=SAMPLE))


def test_settings_that_do_not_change_the_run_may_change(accelerator: Accelerator, tmp_path: Path) -> None:
    # How sentences are spread over devices, and what is logged and kept.
    free: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "checkpoints_total_limit": 9,
        "eval_steps": 3,
    }
    assert not set(free) & {*FIXED_ON_RESUME, *LENGTHS_FIXED_ON_RESUME}
    training = Training(accelerator, seed=1)
    training.load(training.save(tmp_path), replace(SETTINGS, **free))


def test_another_number_of_processes_draws_sequences_of_its_own() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), torch.rand(1).item()

    def draws_of(rank: int, world_size: int, seed: int = 1, step: int = 7) -> tuple[float, float, float]:
        restore_random_state(states, CPU, rank, world_size, seed, step)
        return draws()

    states, expected = [], []
    for seed in (1, 2):
        set_seed(seed)
        states.append(random_state(CPU))
        expected.append(draws())
    assert [draws_of(rank, 2) for rank in (0, 1)] == expected
    others = [draws_of(rank, world_size) for world_size in (1, 3, 4) for rank in range(world_size)]
    others += [draws_of(0, 3, step=8), draws_of(0, 3, seed=2), *expected]
    assert len(set(others)) == len(others)
    assert draws_of(2, 3) in others  # the same at every start


def train_over_old_checkpoints(folder: Path, killed_at: int) -> bool:
    """Go on from step 2 where steps 1, 2 and 3 are there already; be killed at the given change of files."""
    training = Training(Accelerator(cpu=True), seed=1)
    training.load(folder / "step-00000002")
    training.step()
    kill_at_change(killed_at)
    training.save(folder)  # over step 3
    training.step()
    training.save(folder)  # which rotates step 2 out
    return True


def test_a_kill_at_any_moment_leaves_whole_checkpoints(accelerator: Accelerator, tmp_path: Path) -> None:
    training, before = Training(accelerator, seed=1), tmp_path / "before"
    before.mkdir()
    for _ in range(3):
        training.step()
        training.save(before, limit=9)
    damaged: list[str] = []
    unfinished = 0
    for killed_at in count(1):
        folder = Path(shutil.copytree(before, tmp_path / str(killed_at)))
        process, answer = start(train_over_old_checkpoints, folder, killed_at)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        unfinished += any(path.name.endswith(".unfinished") for path in folder.iterdir())
        found = list_checkpoints(folder)
        assert found
        assert found[-1].name >= "step-00000002"
        for place in found:
            try:
                Training(accelerator, seed=2).load(place)
            except UserError as error:
                damaged.append(f"killed at change {killed_at}: {error}")
    assert answer.recv() is True
    assert killed_at > 10
    assert unfinished > 3  # some kills struck in the middle of writing
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000003", "step-00000004"]
    assert damaged == []
