"""A checkpoint brings everything back, or says in one line that it cannot; a kill at any moment leaves whole ones."""

import io
import json
import pickle
import random
import shutil
import signal
from collections.abc import Callable, Iterator
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

from conftest import Bomb
from processes import kill_at_change, start
from sst2.checkpoint_folder import checkpoint_name, find_latest, list_checkpoints, newest_checkpoint
from sst2.checkpointing import BINDING_SETTINGS, Checkpointer, load_weights
from sst2.errors import UserError
from sst2.optimization import build_optimizer
from sst2.settings import Settings
from sst2.training_state import TrainingState

SETTINGS = Settings(output_dir="/nonexistent", learning_rate=0.01, num_warmup_steps=3, max_train_steps=20)


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
        self.optimizer, self.schedule = build_optimizer(self.model, SETTINGS)
        self.state = TrainingState()

    def step(self) -> list[float]:
        scale = random.random() + np.random.random()
        loss = (self.model(torch.randn(16, 4)) * scale).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        self.state.count_step(True, loss.item(), 16, 64, 64, seconds=0.1)
        return [loss.item(), rate]

    def checkpoints(self, folder: Path, settings: Settings = SETTINGS) -> Checkpointer:
        return Checkpointer(folder, self.accelerator, self.model, self.optimizer, self.schedule, settings, {})

    def save(self, folder: Path, limit: int = 2) -> Path:
        checkpoints = self.checkpoints(folder, replace(SETTINGS, checkpoints_total_limit=limit))
        checkpoints.save(self.state)
        checkpoints.wait()
        assert not checkpoints.has_failed
        return folder / checkpoint_name(self.state.step)

    def load(self, place: Path, settings: Settings = SETTINGS) -> None:
        checkpoints = self.checkpoints(place.parent, settings)
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
    load_weights(place, training.model)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in training.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert training.state.step == 1


def test_only_finished_checkpoints_are_found(tmp_path: Path) -> None:
    for name in (".step-00000300.unfinished", "step-00000400.old", "step-7", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000500").write_text("a file")
    assert list_checkpoints(tmp_path) == []
    assert newest_checkpoint(tmp_path) is None
    assert find_latest(tmp_path) is None
    for step in (20, 100, 3):
        (tmp_path / f"step-{step:08d}").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000020", "step-00000100"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000100"


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    return lambda file: file.write_text(json.dumps(change(json.loads(file.read_text()))))


def of_another_model(file: Path) -> None:
    save_file({name: tensor[:1].clone() for name, tensor in load_file(file).items()}, file)


def nothing_trained(file: Path) -> None:
    torch.save({}, file)


def of_a_newer_version(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"training_state": content["training_state"] | {"invented_later": 1}}


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
    ("state.json", "of a newer version", rewritten(of_a_newer_version)),
    ("training.pt", "without content", nothing_trained),
    ("model.safetensors", "of another model", of_another_model),
]


@pytest.mark.parametrize(("file", "name", "damage"), CASES, ids=[f"{file} {name}" for file, name, _ in CASES])
def test_a_damaged_checkpoint_is_named(
    file: str, name: str, damage: Callable[[Path], object], accelerator: Accelerator, tmp_path: Path
) -> None:
    training = Training(accelerator, seed=1)
    training.step()
    place = training.save(tmp_path)
    damage(place / file)
    with pytest.raises(
        UserError, match=f"(?s){place} cannot be read .*: name an earlier checkpoint, or remove this one"
    ):
        Training(accelerator, seed=2).load(place)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_would_run_code_is_refused_unopened(
    archive: bool, accelerator: Accelerator, tmp_path: Path
) -> None:
    training, crater = Training(accelerator, seed=1), tmp_path / "crater"
    place = training.save(tmp_path)
    content: dict[str, Any] = torch.load(place / "training.pt", weights_only=True) | {"scaler": Bomb(crater)}
    stream = io.BytesIO()
    torch.save(content, stream) if archive else pickle.dump(content, stream, protocol=2)
    (place / "training.pt").write_bytes(stream.getvalue())
    stream.seek(0)
    torch.load(stream, weights_only=False) if archive else pickle.load(stream)
    assert crater.exists()  # it works where it is let
    crater.unlink()
    with pytest.raises(UserError, match=f"{place} cannot be read"):
        training.load(place)
    assert not crater.exists()


def test_the_newest_and_the_best_are_kept(accelerator: Accelerator, tmp_path: Path) -> None:
    training = Training(accelerator, seed=1)

    def kept_after_step() -> list[int]:
        training.step()
        training.save(tmp_path, limit=2)
        return [int(path.name.removeprefix("step-")) for path in list_checkpoints(tmp_path)]

    assert kept_after_step() == [1]
    training.state.best_step = 1
    assert [kept_after_step() for _ in range(4)] == [[1, 2], [1, 2, 3], [1, 3, 4], [1, 4, 5]]
    training.state.best_step = 5
    assert [kept_after_step() for _ in range(3)] == [[5, 6], [5, 6, 7], [5, 7, 8]]
    assert {path.name for path in tmp_path.iterdir()} == {f"step-{step:08d}" for step in (5, 7, 8)}


def test_a_branch_from_an_earlier_checkpoint_replaces_the_later_ones(accelerator: Accelerator, tmp_path: Path) -> None:
    training = Training(accelerator, seed=1)
    for _ in range(4):
        training.step()
        training.save(tmp_path, limit=4)
    training.load(tmp_path / "step-00000002")
    training.step()
    training.save(tmp_path, limit=2)
    # Neither is the new one rotated away, nor may a later start take the abandoned step 4 for the newest.
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]


def test_a_checkpoint_of_other_settings_is_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    training = Training(accelerator, seed=1)
    place = training.save(tmp_path)
    with pytest.raises(UserError, match=r"--learning_rate is 0.02 but .* was trained with 0.01: give --learning_rate"):
        training.load(place, replace(SETTINGS, learning_rate=0.02))
    with pytest.raises(UserError, match=r"--seed is 1 but"):
        training.load(place, replace(SETTINGS, seed=1))
    # What does not change the run may change: how sentences are spread over devices, and what is logged and kept.
    free = {"per_device_train_batch_size": 4, "logging_steps": 1, "checkpoints_total_limit": 9, "eval_steps": 3}
    assert not set(free) & set(BINDING_SETTINGS)
    training.load(place, replace(SETTINGS, **free))


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
