"""Every key of DeepSpeed's configuration has one owner, and a contradiction is one line before training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sst2.config.launcher import Launcher, read_launcher
from sst2.config.settings import Settings
from sst2.distributed.strategies.deepspeed_config import deepspeed_config, deepspeed_plugin, precision_of_file
from sst2.utils.errors import UserError
from tests.support.running import REPOSITORY

SETTINGS = Settings(output_dir="/nonexistent", max_grad_norm=0.7, per_device_train_batch_size=12)


@pytest.fixture
def launcher() -> Launcher:
    return replace(read_launcher(), uses_deepspeed=True)


def with_file(launcher: Launcher, folder: Path, content: Any) -> Launcher:
    file = folder / "deepspeed.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return replace(launcher, deepspeed_file=str(file))


def test_flags_fill_in_what_they_own(launcher: Launcher) -> None:
    offloading = replace(launcher, zero_stage=3, offload_optimizer="cpu", offload_param="cpu")
    config = deepspeed_config(offloading, SETTINGS, "bf16")
    assert (config["gradient_clipping"], config["train_micro_batch_size_per_gpu"]) == (0.7, 12)
    assert config["gradient_accumulation_steps"] == 1  # the loop brings gradients that are means already
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (True, False)
    offload = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    assert config["zero_optimization"].items() >= ({"stage": 3, "overlap_comm": True} | offload).items()
    assert "auto" not in json.dumps(config)
    assert "communication_data_type" not in config
    compressed = deepspeed_config(launcher, replace(SETTINGS, gradient_compression="bf16"), "no")
    assert compressed["communication_data_type"] == "bf16"
    assert not compressed["bf16"]["enabled"]


def test_accelerate_takes_it_as_it_is(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    # as `accelerate launch` leaves it; accelerate's own plugin refuses a file beside it
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "zero_stage,mixed_precision")
    plugin = deepspeed_plugin(replace(launcher, zero_stage=3), SETTINGS, "no")
    assert plugin.deepspeed_config == deepspeed_config(replace(launcher, zero_stage=3), SETTINGS, "no")
    assert (plugin.zero_stage, plugin.zero3_init_flag) == (3, False)


def test_a_file_owns_the_rest(launcher: Launcher, tmp_path: Path) -> None:
    content = json.loads((REPOSITORY / "accelerate_configs" / "deepspeed.json").read_text())
    content["fp16"] = {"enabled": "auto", "initial_scale_power": 8}
    given = with_file(launcher, tmp_path, content)
    config = deepspeed_config(given, SETTINGS, "bf16")
    assert config["zero_optimization"] == content["zero_optimization"]
    assert config["fp16"] == {"enabled": False, "initial_scale_power": 8}
    assert precision_of_file(str(given.deepspeed_file)) == "bf16"
    # The sizes that the templates of transformers leave open are made to fit the model's width.
    content["zero_optimization"] |= {"reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    zero = deepspeed_config(with_file(launcher, tmp_path, content), SETTINGS, "bf16")["zero_optimization"]
    assert zero["reduce_bucket_size"] == "auto"
    # A value that agrees with its owner may stand there.
    agreeing = {"zero_optimization": {"stage": 1}, "gradient_clipping": 0.7, "train_batch_size": 64}
    config = deepspeed_config(with_file(launcher, tmp_path, agreeing), replace(SETTINGS, global_batch_size=64), "no")
    assert config["gradient_clipping"] == 0.7
    assert precision_of_file(str(given.deepspeed_file)) is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            {"gradient_clipping": 0.5},
            'sets gradient_clipping to 0.5, but --max_grad_norm is 0.7, which decides: write "auto" there, and use',
        ),
        ({"train_batch_size": 64}, "sets train_batch_size to 64, but --global_batch_size is not given, which decides"),
        ({"train_micro_batch_size_per_gpu": 4}, "but --per_device_train_batch_size is 12, which decides"),
        ({"gradient_accumulation_steps": 4}, "but --gradient_accumulation_steps is 1, which decides"),
        ({"bf16": {"enabled": True}}, "sets bf16.enabled to True, but --mixed_precision is no, which decides"),
        ({"optimizer": {"type": "Adam"}}, "has optimizer: remove it, since train_sst2.py brings AdamW"),
        ({"scheduler": {"type": "WarmupLR"}}, "has scheduler: remove it, since --lr_scheduler_type is the schedule"),
        ({"zero_optimization": {"stage": 0}}, "asks for ZeRO stage 0: give 1, 2 or 3"),
        ({"zero_optimization": {}}, "asks for ZeRO stage None: give 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "offloads to nvme, which a model of",
        ),
        ({"bf16": True}, "bf16 must be an object, such as {}"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, "has data_types: remove it, since weights and gradients are of"),
        ({"fp16": {"loss_scale": "auto"}}, 'leaves fp16.loss_scale to be "auto", and nobody here decides it: give'),
        (
            {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
            "turns off zero_optimization.compute_grad_norm, by which steps that are not finite are found: leave it out",
        ),
        ({"bf16": {"check_grad_overflow": False}}, "turns off bf16.check_grad_overflow, by which steps that are not"),
        ("{", "is not JSON: "),
        ("[1]", "holds no JSON object"),
    ],
)
def test_a_contradiction_is_named_with_both_sides(
    content: Any, complaint: str, launcher: Launcher, tmp_path: Path
) -> None:
    if isinstance(content, dict):
        content = {"zero_optimization": {"stage": 2}} | content
    given = with_file(launcher, tmp_path, content)
    with pytest.raises(UserError) as refused:
        deepspeed_config(given, SETTINGS, "no")
    assert str(given.deepspeed_file) in str(refused.value)
    assert complaint in str(refused.value)
    if isinstance(content, dict):  # what is wrong with it is said by the other function, not by this one's failure
        assert precision_of_file(str(given.deepspeed_file)) in (None, "bf16")


def test_the_launchers_own_flags_contradict_as_well(launcher: Launcher, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the launcher's deepspeed_config sets gradient_clipping to 0\.5"):
        deepspeed_config(replace(launcher, gradient_clipping="0.5"), SETTINGS, "no")
    assert deepspeed_config(replace(launcher, gradient_clipping="0.7"), SETTINGS, "no")["gradient_clipping"] == 0.7
    with pytest.raises(UserError, match=r"deepspeed_config_file .*missing.json: No such file"):
        deepspeed_config(replace(launcher, deepspeed_file=str(tmp_path / "missing.json")), SETTINGS, "no")
