"""Whatever spreads the model over processes, the run is the same: launched by the project's own YAML files, on CPUs."""

import csv
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import pipeline

from tests.support.jobs import ONE_PROCESS, running
from tests.support.processes import free_port
from tests.support.ranks import ranks_of, run_to_the_end, train_ranks
from tests.support.running import REPOSITORY, Finished

pytestmark = pytest.mark.slow

CONFIGURATIONS = REPOSITORY / "accelerate_configs"
ZERO = ["deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "deepspeed_zero2_offload", "deepspeed_zero3_offload"]
# Steps of 50 sentences in forward passes of 10 at most: accumulation, and passes that differ in size.
SAMPLE = ["--smoke", "--max_train_steps", 30, "--global_batch_size", 50, "--per_device_train_batch_size", 10]
SAMPLE += ["--dropout", 0, "--logging_steps", 1, "--log_sample_ids"]

HUNDRED = ["--max_train_steps", 100, "--per_device_train_batch_size", 50]

Train = Callable[..., Finished]


def launcher(name: str, processes: int, precision: str = "no") -> list[str]:
    configuration = CONFIGURATIONS / f"{name}.yaml"
    command = [*ONE_PROCESS, "--config_file", configuration, "--num_processes", processes, "--main_process_port", 0]
    return [*map(str, command), "--mixed_precision", precision]


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_to_the_end(SAMPLE, tmp_path_factory.mktemp("on-one") / "run", "single_cpu")


def assert_same_course(run_dir: Path, expected: dict[str, Any]) -> None:
    assert (run_dir / "samples.jsonl").read_text() == expected["sample_ids"]
    curves = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(curves) == len(expected["curves"]) == 31
    for one, other in zip(curves, expected["curves"], strict=True):
        assert (one["split"], one["step"]) == (other["split"], other["step"])
        assert one.get("learning_rate") == other.get("learning_rate")
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        if one["split"] == "train":
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "processes"), [*(("multi_cpu", processes) for processes in (2, 3, 4)), *((name, 2) for name in ZERO)]
)
def test_every_configuration_takes_the_course_of_one_process(
    name: str, processes: int, on_one: dict[str, Any], tmp_path: Path
) -> None:
    run = train_ranks(SAMPLE, tmp_path / "run", name, processes)
    assert run.code == 0, run.stderr
    assert_same_course(run.run_dir, on_one)
    environment = json.loads((run.run_dir / "environment.json").read_text())
    assert environment["world_size"] == processes
    assert environment["strategy"] == ("deepspeed" if name in ZERO else "multi_cpu")
    if name in ZERO:
        zero = environment["deepspeed_config"]["zero_optimization"]
        assert zero["stage"] == int(name[len("deepspeed_zero")])
        assert ("offload_optimizer" in zero, "offload_param" in zero) == ("offload" in name, "zero3_offload" in name)
        assert "auto" not in json.dumps(environment["deepspeed_config"])
    logged = run.logged("train")
    assert sum(line["token_imbalance"] for line in logged) / len(logged) < 0.1
    assert all(0 < line["waiting_share"] < 1 for line in logged)
    assert run.metrics["count"] == 600


@pytest.mark.parametrize(("name", "processes"), [("single_cpu", 1), ("multi_cpu", 2), ("deepspeed_zero2", 2)])
def test_packed_batches_take_the_course_of_padded_ones(
    name: str, processes: int, hundred_padded_steps: list[float], tmp_path: Path
) -> None:
    run = train_ranks([*SAMPLE, *HUNDRED], tmp_path / "run", name, processes)
    assert run.code == 0, run.stderr
    assert [line["loss"] for line in run.logged("train")] == pytest.approx(hundred_padded_steps, rel=1e-5)
    assert all(line["padding_share"] == 0 for line in run.logged("train"))


@pytest.fixture(scope="module")
def hundred_padded_steps(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of one process."""
    flags = [*SAMPLE, *HUNDRED, "--batching", "padded"]
    results = run_to_the_end(flags, tmp_path_factory.mktemp("padded") / "run")
    lines = [line for line in results["curves"] if line["split"] == "train"]
    assert sum(line["padding_share"] for line in lines) / len(lines) > 0.05
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("name", ["multi_cpu", "deepspeed_zero1"])
def test_gradients_sent_in_bf16_change_little(name: str, on_one: dict[str, Any], tmp_path: Path) -> None:
    run = train_ranks([*SAMPLE, "--gradient_compression", "bf16"], tmp_path / "run", name, 2)
    assert run.code == 0, run.stderr
    differences = [
        abs(one["loss"] / other["loss"] - 1) for one, other in zip(run.logged("train"), on_one["curves"], strict=False)
    ]
    assert differences[0] < 1e-6  # no gradient has been sent before the first loss
    assert 1e-8 < max(differences) < 1e-3


def test_killed_under_one_strategy_a_run_goes_on_under_any(on_one: dict[str, Any], tmp_path: Path) -> None:
    # Each strategy starts, loads what another has saved, saves, and is killed; the number of processes changes.
    run_dir, step = tmp_path / "run", 0
    flags = [*SAMPLE, "--checkpointing_steps", 3]
    for name in ("multi_cpu", *ZERO):
        with running([*flags, "--resume_from_checkpoint", "auto"], run_dir, ranks=ranks_of(name, 2)) as job:
            step += 4
            job.wait_for_step(step)
            saved = run_dir / "checkpoints" / f"step-{step // 3 * 3:08d}"
            job.wait_for(saved.is_dir)
            for process in job.processes():
                process.kill()
            job.wait()
    for way in (("deepspeed_zero1", 3), ("single_cpu", 1)):
        shutil.copytree(run_dir, tmp_path / way[0])
        finished = run_to_the_end(flags, tmp_path / way[0], *way)
        assert_same_course(tmp_path / way[0], on_one)
        assert finished["metrics"]["count"] == 600


def test_a_run_may_stop_before_its_first_step(on_one: dict[str, Any], tmp_path: Path) -> None:
    with running(SAMPLE, tmp_path / "run", launcher("deepspeed_zero1", 2)) as job:
        job.wait_for((tmp_path / "run").exists)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait().code == 75, job.said
    assert [path.name for path in job.checkpoints] == ["step-00000000"]
    run_to_the_end(SAMPLE, tmp_path / "run", "deepspeed_zero2", 2)
    assert_same_course(tmp_path / "run", on_one)


def test_the_same_strategy_goes_on_bit_for_bit(tmp_path: Path) -> None:
    # Dropout, and the rounded weights of bf16 beside those in float32 that the checkpoint holds.
    flags = [*SAMPLE, "--dropout", 0.1, "--max_train_steps", 14, "--checkpointing_steps", 4]
    way = ("deepspeed_zero3", 2, "bf16")
    with running(flags, tmp_path / "run", ranks=ranks_of(*way)) as job:
        job.wait_for_step(6)
        job.wait_for(lambda: "step-00000004" in str(job.checkpoints))
        for process in job.processes():
            process.kill()
        job.wait()
    assert run_to_the_end(flags, tmp_path / "run", *way) == run_to_the_end(flags, tmp_path / "undisturbed", *way)


def test_the_export_of_a_spread_model_is_the_model_that_was_evaluated(tmp_path: Path) -> None:
    flags = [*SAMPLE, "--learning_rate", 3e-3, "--load_best_model_at_end", "--eval_steps", 10]
    run = train_ranks(flags, tmp_path / "run", "deepspeed_zero3", 3)
    assert run.code == 0, run.stderr
    with (run.run_dir / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classify = pipeline("text-classification", str(run.run_dir / "model"), top_k=None)
    answers: Any = classify([row["sentence"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        (positive,) = [entry["score"] for entry in answer if entry["label"] == "POSITIVE"]
        assert positive == pytest.approx(float(row["probability_positive"]), abs=1e-5)
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / len(rows) == pytest.approx(run.metrics["accuracy"])


PRECISE = ["--smoke", "--global_batch_size", 64, "--learning_rate", 2e-3, "--dropout", 0, "--logging_steps", 1]
ONE_ROUNDING = 2**-8  # to bf16
# After more steps, weights differ by more than rounding: errors grow with every step.
FIRST_STEPS = [*PRECISE, "--max_train_steps", 25]
# Long enough for accuracy not to hang on chance: seeds and precisions then differ by a point, after two epochs by five.
LEARNING = [*PRECISE, "--num_train_epochs", 3]


@pytest.fixture(scope="module")
def first_steps_in_float32(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of one process."""
    run = train_ranks(FIRST_STEPS, tmp_path_factory.mktemp("first-steps") / "run")
    assert run.code == 0, run.stderr
    return [line["loss"] for line in run.logged("train")]


@pytest.mark.parametrize("name", ["multi_cpu", *ZERO])
def test_bf16_begins_as_float32_does_under_each(name: str, first_steps_in_float32: list[float], tmp_path: Path) -> None:
    run = train_ranks(FIRST_STEPS, tmp_path / "run", name, 2, "bf16")
    assert run.code == 0, run.stderr
    assert json.loads((run.run_dir / "environment.json").read_text())["mixed_precision"] == "bf16"
    losses = [line["loss"] for line in run.logged("train")]
    pairs = zip(losses, first_steps_in_float32, strict=True)
    assert 0 < mean(abs(loss / exact - 1) for loss, exact in pairs) < ONE_ROUNDING


@pytest.fixture(scope="module")
def lowest_accuracy_in_float32(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The lower end of the 95 % interval of one process."""
    run = train_ranks(LEARNING, tmp_path_factory.mktemp("float32") / "run")
    assert run.code == 0, run.stderr
    lowest: float = run.metrics["accuracy_ci95"][0]
    return lowest


# Autocast, and both of DeepSpeed's optimizers in bf16: of stages 1 and 2, and of 3. Offloaded, they are the same.
@pytest.mark.parametrize("name", ["multi_cpu", "deepspeed_zero2", "deepspeed_zero3"])
def test_bf16_learns_as_float32_does(name: str, lowest_accuracy_in_float32: float, tmp_path: Path) -> None:
    run = train_ranks(LEARNING, tmp_path / "run", name, 2, "bf16")
    assert run.code == 0, run.stderr
    assert run.metrics["accuracy"] >= lowest_accuracy_in_float32 > 0.8
    assert math.isfinite(run.metrics["loss"])


def test_a_deepspeed_file_is_followed_in_what_it_owns(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    content = json.loads((CONFIGURATIONS / "deepspeed.json").read_text())
    content["zero_optimization"]["reduce_bucket_size"] = 12345
    file.write_text(json.dumps(content))
    yaml = tmp_path / "deepspeed_file.yaml"
    text = (CONFIGURATIONS / "deepspeed_file.yaml").read_text()
    yaml.write_text(text.replace("accelerate_configs/deepspeed.json", str(file)))
    way = [*ONE_PROCESS, "--config_file", str(yaml), "--num_processes", "2", "--main_process_port", "0"]
    compiled = tmp_path / "compiled"
    run = train("--smoke", "--max_train_steps", 3, launcher=way, TORCH_EXTENSIONS_DIR=str(compiled))
    assert run.code == 0, run.stderr
    assert not compiled.exists()
    environment = json.loads((run.run_dir / "environment.json").read_text())
    assert environment["mixed_precision"] == "bf16"  # as the file says
    assert environment["deepspeed_config"]["zero_optimization"]["reduce_bucket_size"] == 12345
    assert environment["deepspeed_config"]["gradient_clipping"] == 1.0


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", ["deepspeed_zero2", "deepspeed_zero3"])
def test_steps_that_are_not_finite_are_skipped_and_end_the_run(
    name: str, precision: str, small_job: list[Any], broken_model: Path, tmp_path: Path
) -> None:
    flags = [*small_job, "--global_batch_size", 16]  # so that ten steps come before the first evaluation
    run = train_ranks([*flags, "--model_name_or_path", broken_model], tmp_path / "run", name, 2, precision)
    assert run.code == 3, run.stderr
    assert "not finite in 10 steps in a row, up to step 10" in run.stderr
    assert run.logged("train")[-1]["skipped_steps"] == 9


@pytest.fixture(scope="module")
def poisoned_job(tiny_model: Path, tsv_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """All weights are finite, and yet one of an epoch's batches is not: a word of one sentence has a huge embedding."""
    folder = tmp_path_factory.mktemp("poisoned")
    text = (tsv_files[0].read_text() + tsv_files[1].read_text()).lower()
    vocabulary = json.loads((tiny_model / "tokenizer.json").read_text())["model"]["vocab"]
    word = next(entry for entry in vocabulary if entry.isalpha() and len(entry) > 3 and entry not in text)
    model = Path(shutil.copytree(tiny_model, folder / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][vocabulary[word]] = 3e38
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (folder / "train.tsv").write_text(f"{tsv_files[0].read_text()}{word}\t1\n")
    return [
        *("--model_name_or_path", model, "--train_file", folder / "train.tsv", "--validation_file", tsv_files[1]),
        *("--num_train_epochs", 2, "--learning_rate", 1e-3, "--logging_steps", 1, "--dropout", 0),
        *("--global_batch_size", 50, "--per_device_train_batch_size", 10),
    ]


@pytest.fixture(scope="module")
def poisoned_on_one(poisoned_job: list[Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_to_the_end([*poisoned_job, "--log_sample_ids"], tmp_path_factory.mktemp("poisoned") / "run")


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("multi_cpu", 1.0),
        ("deepspeed_zero1", 1.0),
        ("deepspeed_zero2", 1.0),
        ("deepspeed_zero2", 0.0),
        ("deepspeed_zero3", 1.0),
    ],
)
def test_a_poisoned_batch_is_skipped_and_leaves_no_trace(
    name: str, clip: float, poisoned_job: list[Any], poisoned_on_one: dict[str, Any], tmp_path: Path
) -> None:
    run = train_ranks([*poisoned_job, "--max_grad_norm", clip], tmp_path / "run", name, 2)
    assert run.code == 0, run.stderr
    logged = run.logged("train")
    assert logged[-1]["skipped_steps"] == 2  # one an epoch
    assert sum(not math.isfinite(line["grad_norm"] or math.nan) for line in logged) == 2
    weights = load_file(run.run_dir / "model" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    if clip:
        for split in ("train", "validation"):
            expected = [line["loss"] for line in poisoned_on_one["curves"] if line["split"] == split]
            losses = [line["loss"] for line in run.logged(split)]
            assert [loss is None for loss in losses] == [loss is None for loss in expected]  # of the skipped steps
            assert [loss or 0.0 for loss in losses] == pytest.approx([loss or 0.0 for loss in expected], rel=1e-4)


@pytest.mark.parametrize("name", ["deepspeed_zero2"])
def test_a_poisoned_batch_is_skipped_in_bf16(name: str, poisoned_job: list[Any], tmp_path: Path) -> None:
    run = train_ranks(poisoned_job, tmp_path / "run", name, 2, "bf16")
    assert run.code == 0, run.stderr
    assert run.logged("train")[-1]["skipped_steps"] == 2
    weights = load_file(run.run_dir / "model" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_the_configuration_of_many_gpus_runs_on_cpus_where_there_are_none(train: Train) -> None:
    run = train("--smoke", "--max_train_steps", 3, launcher=launcher("multi_gpu", 2))
    assert run.code == 0, run.stderr
    assert json.loads((run.run_dir / "environment.json").read_text())["world_size"] == 2


def test_two_launchers_are_two_machines(on_one: dict[str, Any], tmp_path: Path) -> None:
    run_dir, port = tmp_path / "run", free_port()
    (tmp_path / "other").mkdir()
    run_dir.mkdir()
    (tmp_path / "other" / "run").symlink_to(run_dir)
    ways = []
    for machine in range(2):
        way = launcher("multi_node", 2)
        way[way.index("--main_process_port") + 1] = str(port)
        ways.append([*way, "--machine_rank", str(machine), "--main_process_ip", "127.0.0.1"])
    with running(SAMPLE, run_dir, ways[0]) as first, running(SAMPLE, tmp_path / "other" / "run", ways[1]) as second:
        codes = [job.wait(120).code for job in (first, second)]
    assert codes == [0, 0], first.said + second.said
    assert_same_course(run_dir, on_one)
