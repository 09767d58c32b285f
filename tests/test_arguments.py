"""The command line: defaults, YAML files, and answers that come at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import SCRIPT
from sst2.arguments import MARK, parse_arguments, to_yaml
from sst2.settings import Settings


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


def test_written_settings_can_be_read_back(tmp_path: Path) -> None:
    settings = parse("--smoke", "--dropout", "0", "--eval_steps", "5", "--load_best_model_at_end")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(settings))
    assert parse("--config", str(file)) == settings
    assert yaml.safe_load(file.read_text())["dropout"] == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("learning_rat: 3e-5\n", "did you mean --learning_rate?"),
        ("learning_rate: fast\n", "learning_rate"),
        ("- a\n- b\n", "must hold lines"),
        ("train_file: [a.tsv, b.tsv]\n", "takes one value"),
        ("a: [\n", "is not YAML"),
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


def test_a_flag_puts_aside_what_the_file_derived_from_another(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("max_train_steps: 20\nglobal_batch_size: 64\ngradient_accumulation_steps: 2\n")
    assert parse("--config", str(file)).max_train_steps == 20
    assert parse("--config", str(file), "--num_train_epochs", "5").max_train_steps is None
    settings = parse("--config", str(file), "--gradient_accumulation_steps", "4")
    assert (settings.gradient_accumulation_steps, settings.global_batch_size) == (4, None)


def test_what_belongs_to_one_start_is_not_recorded(tmp_path: Path) -> None:
    recorded = yaml.safe_load(to_yaml(parse("--smoke", "--overwrite_output_dir")))
    assert "overwrite_output_dir" not in recorded
    assert "resume_from_checkpoint" not in recorded


def test_unknown_flag_suggests_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean --learning_rate?" in refused(capsys, "--learning-rat", "1e-5")


def test_other_ranks_do_not_repeat_the_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
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
    run.mkdir()
    (run / "config.yaml").write_text(f"{MARK}\n")
    checkpoint = run / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    for owner in (None, "16"):  # of nobody, of an earlier job: the flags mean what they say
        if owner:
            (run / "environment.json").write_text(json.dumps({"variables": {"SLURM_JOB_ID": owner}}))
        assert choices("--overwrite-output-dir") == (str(run), True, None)
        assert choices("--resume_from_checkpoint", str(checkpoint)) == (str(run), False, str(checkpoint))
    (run / "environment.json").write_text(json.dumps({"variables": {"SLURM_JOB_ID": "17"}}))
    assert choices("--overwrite_output_dir", "True") == (str(run), False, "auto")
    assert choices("--resume_from_checkpoint", str(checkpoint)) == (str(run), False, "auto")
    monkeypatch.delenv("SST2_BATCH_JOB")
    assert choices("--output_dir", str(run), "--overwrite_output_dir") == (str(run), True, None)
