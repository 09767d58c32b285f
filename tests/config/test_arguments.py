"""The command line: defaults, YAML files, and answers that come at once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sst2.config.arguments import given_yaml, parse_arguments, resolved_yaml, write_settings
from sst2.config.flag_groups import NAMES
from sst2.config.run_flags import _OTHER_NAMES
from sst2.config.settings import Settings
from sst2.data.batch_plan import plan_batches
from sst2.runs.run_folder import RunFolder
from tests.support.running import SCRIPT


def parse(*words: str) -> Settings:
    return parse_arguments([*words, "--output_dir", "/nonexistent/run"])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_arguments(list(words))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_defaults_are_the_published_recipe() -> None:
    settings = parse()
    assert settings.model_name_or_path == "distilbert/distilbert-base-uncased"
    assert (settings.dataset_name, settings.dataset_config_name) == ("nyu-mll/glue", "sst2")
    assert (settings.learning_rate, settings.weight_decay, settings.max_grad_norm) == (2e-5, 0.01, 1.0)
    assert (settings.num_train_epochs, settings.warmup_ratio, settings.lr_scheduler_type) == (3.0, 0.06, "linear")
    assert (settings.per_device_train_batch_size, settings.max_length, settings.seed) == (32, 128, 42)


def test_command_line_wins_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("learning_rate: 3e-5\nseed: 7\nsmoke: true\nreport_to: [tensorboard]\n")
    settings = parse("--config", str(file), "--seed", "8")
    assert (settings.learning_rate, settings.seed, settings.smoke) == (3e-5, 8, True)
    assert settings.num_train_epochs == parse("--smoke").num_train_epochs  # the smoke recipe below the file


def test_what_was_asked_for_is_written_and_means_the_same_beside_other_flags(tmp_path: Path) -> None:
    asked = parse("--smoke", "--dropout", "0", "--eval_steps", "5", "--load_best_model_at_end", "--seed", "42")
    settings, plan = plan_batches(asked, 1000, world_size=2)
    file = tmp_path / "config.yaml"
    file.write_text(given_yaml(settings))
    assert yaml.safe_load(file.read_text()) == {
        **{"smoke": True, "dropout": 0, "eval_steps": 5, "load_best_model_at_end": True, "seed": 42},
        "output_dir": "/nonexistent/run",
    }
    assert parse("--config", str(file)) == asked
    again = parse("--config", str(file), "--global_batch_size", "256")
    _, wider = plan_batches(again, 1000, world_size=1)
    assert (plan.total_steps, wider.total_steps) == (5 * 16, 5 * 4)  # five epochs of 64 and of 256 sentences


def test_what_was_worked_out_is_on_record_and_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, _ = plan_batches(parse("--smoke"), 1000, world_size=2)
    file = tmp_path / "resolved.yaml"
    file.write_text(resolved_yaml(settings))
    record = yaml.safe_load(file.read_text())
    assert (record["global_batch_size"], record["max_train_steps"], record["num_warmup_steps"]) == (64, 80, 8)
    assert "give the config.yaml beside it" in refused(capsys, "--config", str(file))


@pytest.mark.parametrize(
    ("words", "content", "name", "value"),
    [
        (["--num_train_epochs", "3"], "max_train_steps: 77", "max_train_steps", None),
        (["--learning_rate", "2e-5"], "learning_rate: 1e-3", "learning_rate", 2e-5),
        (["--warmup_ratio", "0.06"], "num_warmup_steps: 7", "num_warmup_steps", None),
        (["--smoke", "false"], "smoke: true", "smoke", False),
        (["--learning_rate", "2e-5"], "smoke: true", "learning_rate", 2e-5),  # over the smoke recipe's 1e-3
        (["--max_length", "128", "--load_best_model_at_end", "no"], "load_best_model_at_end: yes", "max_length", 128),
    ],
)
def test_a_flag_that_is_given_wins_also_with_its_default(
    words: list[str], content: str, name: str, value: object, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content + "\n")
    assert getattr(parse(*words, "--config", str(file)), name) == value


def test_yaml_is_taken_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model_revision: 1.10\ndataset_revision: 010\nlabel_names: [no, null]\nsentence_column: null\n"
        "label_column: 1_0\ndataset_config_name: 2024-01-02\nseed: 010\n"
        "mixed_precision: no\ncuda_graphs: no\nlearning_rate: 3e-5\n"
        "max_train_steps: null\nnum_train_epochs:\nload_best_model_at_end: on\noutput_dir: '~'\n"
    )
    settings = parse_arguments(["--config", str(file), "--output_dir", "/nonexistent/run"])
    assert (settings.model_revision, settings.dataset_revision) == ("1.10", "010")
    assert (settings.label_names, settings.sentence_column, settings.label_column) == (["no", "null"], "null", "1_0")
    assert (settings.dataset_config_name, settings.seed, settings.learning_rate) == ("2024-01-02", 10, 3e-5)
    assert (settings.mixed_precision, settings.cuda_graphs, settings.load_best_model_at_end) == ("no", "no", True)
    assert (settings.max_train_steps, settings.num_train_epochs) == (None, 3.0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("learning_rat: 3e-5\n", "did you mean --learning_rate?"),
        ("learning_rate: fast\n", "learning_rate"),
        ("- a\n- b\n", "must hold lines"),
        ("train_file: [a.tsv, b.tsv]\n", "takes one value"),
        ("a: [\n", "is not YAML"),
        ("seed: 1\nlearning_rate: 1\nseed: 2\n", "seed stands there twice"),
        ("seed: !!int x\n", "invalid int value: 'x'"),
        ("[" * 3000, "is not YAML"),
        ("a: &a [x]\nseed: *a\n", "a is not a setting"),
        ("save_steps: 3\n", "save_steps is not a setting, here it is --checkpointing_steps"),
    ],
)
def test_mistakes_in_a_yaml_file_name_it(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    message = refused(capsys, "--config", str(file))
    assert str(file) in message
    assert expected in message


def test_no_value_has_a_null_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text('output_dir: "a\\0b"\n')
    assert "--output_dir has a null character" in refused(capsys, "--config", str(file))


def test_a_flag_overrides_what_a_file_says_of_another_that_cannot_hold_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("max_train_steps: 20\ngradient_accumulation_steps: 2\n")
    assert parse("--config", str(file)).max_train_steps == 20
    assert parse("--config", str(file), "--num_train_epochs", "5").max_train_steps is None
    assert parse("--config", str(file), "--global_batch_size", "64").gradient_accumulation_steps is None
    assert parse("--config", str(file), "--per_device_train_batch_size", "8").gradient_accumulation_steps == 2
    file.write_text("global_batch_size: 64\n")
    settings = parse("--config", str(file), "--gradient_accumulation_steps", "4")
    assert (settings.gradient_accumulation_steps, settings.global_batch_size) == (4, None)


def test_what_belongs_to_one_start_is_not_recorded(tmp_path: Path) -> None:
    settings = parse("--smoke", "--overwrite_output_dir", "--push_to_hub")
    for record in (given_yaml(settings), resolved_yaml(settings)):
        names = set(yaml.safe_load(record))
        assert "smoke" in names
        assert names.isdisjoint({"overwrite_output_dir", "resume_from_checkpoint", "push_to_hub"})


def test_unknown_flag_suggests_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean --learning_rate?" in refused(capsys, "--learning-rat", "1e-5")


@pytest.mark.parametrize(
    ("word", "here"),
    [
        ("--save_steps", "--checkpointing_steps"),
        ("--save-total-limit=3", "--checkpoints_total_limit"),
        ("--text_column_name", "--sentence_column"),
        ("--label_column_name", "--label_column"),
        ("--task_name", "--dataset_name nyu-mll/glue --dataset_config_name sst2"),
        ("--max_seq_length", "--max_length"),
        ("--max_steps", "--max_train_steps"),
        ("--warmup_steps", "--num_warmup_steps"),
        ("--fp16", "--mixed_precision fp16"),
        ("--do_train", "nothing: a run always trains"),
    ],
)
def test_a_flag_of_the_trainer_is_told_its_name_here(word: str, here: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{word.split('=', maxsplit=1)[0]} is not a flag, here it is {here}" in refused(capsys, word)


def test_hints_name_flags_that_there_are() -> None:
    for hint in _OTHER_NAMES.values():
        for flag in re.findall(r"--(\w+)", hint):
            assert flag in {*NAMES, "config_file", "cpu", "num_processes", "dynamo_backend"}, flag
    assert not set(_OTHER_NAMES) & set(NAMES)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--config", "a.yaml", "--config=b.yaml"], "--config is given twice: one file holds all settings"),
        (["--report_to", "mlflow", "--report-to", "wandb"], "--report_to is given twice: name all values after one"),
        (["--label_names=bad", "--label_names", "good"], "--label_names is given twice: name all values after one"),
    ],
)
def test_a_flag_whose_first_values_would_be_dropped_is_refused(
    flags: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *flags) == f"train_sst2.py: error: {line}\n"


def test_of_any_other_flag_the_last_one_counts() -> None:
    flags = ["--output_dir", "/nonexistent/run", "--learning_rate", "1e-3", "--learning_rate=1e-4"]
    assert parse_arguments(flags).learning_rate == 1e-4


def test_no_secret_is_in_the_line_of_a_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SST2_TRACEBACK", "1")
    for flags, line in (
        (["--hub_token=hf_secret"], "error: --hub_token is not a flag, here it is the variable HF_TOKEN, or hf auth"),
        (["--config", "http://me:hf_secret@hub.org/a.yaml"], "error: --config http://***@hub.org/a.yaml: No such"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(flags)
        said = capsys.readouterr().err
        assert line in said.splitlines()[-1]
        assert "Traceback" in said  # for whoever asks for it, as everywhere
        assert "hf_secret" not in said


def test_a_path_that_the_file_system_does_not_take_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x" * 300
    said = refused(capsys, "--train_file", f"{name}.csv", "--validation_file", f"{name}.csv")
    assert said.endswith(f": --train_file {name}.csv cannot be used (File name too long): give another path\n")
    said = refused(capsys, "--smoke", "--output_dir", f"/tmp/{name}")
    assert said == f"train_sst2.py: error: /tmp/{name} cannot be used (File name too long): give another path\n"


def test_other_ranks_do_not_repeat_the_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        parse_arguments(["--nonsense"])
    assert capsys.readouterr().err == ""


def test_help_and_a_wrong_flag_answer_without_importing_torch(tmp_path: Path) -> None:
    # A module named torch that cannot be imported: whoever tries is found out, on a machine of any speed.
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for flag, code, output in (("--help", 0, "training:"), ("--nonsense", 2, "--nonsense is not a flag")):
        done = subprocess.run(
            [sys.executable, SCRIPT, flag], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert output in done.stdout + done.stderr


def test_a_batch_job_goes_on_with_the_run_that_it_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("SST2_BATCH_JOB", "17")
    monkeypatch.setenv("SST2_OUTPUT_DIR", str(run))

    def choices(*flags: str) -> tuple[str | None, bool, str | None]:
        settings = parse_arguments(["--smoke", *flags])
        return settings.output_dir, settings.overwrite_output_dir, settings.resume_from_checkpoint

    assert choices() == (str(run), False, "auto")
    assert choices("--output-dir", str(tmp_path / "named"))[0] == str(tmp_path / "named")
    checkpoint = run / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    for owner in (None, "16"):  # of nobody, of an earlier job: the flags mean what they say
        begin(run, owner)
        assert choices("--overwrite-output-dir") == (str(run), True, None)
        assert choices("--resume_from_checkpoint", str(checkpoint)) == (str(run), False, str(checkpoint))
    begin(run, "17")
    assert choices("--overwrite_output_dir", "True") == (str(run), False, "auto")
    assert choices("--resume_from_checkpoint", str(checkpoint)) == (str(run), False, "auto")
    begin(run, None)  # as earlier versions did, which wrote the job elsewhere
    for job, goes_on in (("17", True), ("16", False)):
        (run / "environment.json").write_text(json.dumps({"variables": {"SLURM_JOB_ID": job}}))
        assert choices("--overwrite_output_dir") == (str(run), not goes_on, "auto" if goes_on else None)
    monkeypatch.delenv("SST2_BATCH_JOB")
    assert choices("--output_dir", str(run), "--overwrite_output_dir") == (str(run), True, None)


def test_ranks_that_are_started_again_go_on_with_the_run_that_their_job_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the folder is the one that a run has if no flag names one
    monkeypatch.setenv("SST2_LAUNCH", "4f")
    run = tmp_path / "runs" / "smoke-seed42"
    run.mkdir(parents=True)
    overwrite = ["--smoke", "--overwrite_output_dir"]
    for owner in (None, "4e"):  # another job's: neither gone on with unasked, nor is overwriting left out
        begin(run, owner)
        assert "--output_dir runs/smoke-seed42 is not empty" in refused(capsys, "--smoke")
        assert parse_arguments(overwrite).overwrite_output_dir
    begin(run, "4f")
    for flags in (["--smoke"], overwrite):
        settings = parse_arguments(flags)
        assert (settings.overwrite_output_dir, settings.resume_from_checkpoint) == (False, "auto")
    assert parse_arguments(["--smoke", "--seed", "7"]).resume_from_checkpoint is None  # another folder


def begin(run: Path, job: str | None) -> None:
    """Write what marks a folder as a run's, as a job that may start many times does, or as one that does not."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("SST2_BATCH_JOB", raising=False)
        environment.setenv("SST2_LAUNCH", job or "")
        write_settings(RunFolder(run), Settings())
