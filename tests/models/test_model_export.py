"""The exported folder is a stock model that works without this project, and appears only if it is the trained one."""

import json
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import normalizers
from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer, pipeline

from sst2.config.flag_groups import LABEL_NAMES, SAMPLE
from sst2.config.settings import Settings
from sst2.data.sample import sample_sentences, sample_tokenizer
from sst2.models.export import Export, rehearse_export
from sst2.models.loading import load_model, load_tokenizer
from sst2.models.model_card import model_card
from sst2.utils.errors import LocalError, UserError
from tests.support.running import Finished

SENTENCES = sample_sentences("validation")[0][:40]
METRICS: dict[str, Any] = {
    **{"accuracy": 0.91284, "precision": 0.9, "recall": 0.92, "f1": 0.91, "matthews": 0.82, "roc_auc": 0.97},
    **{"loss": 0.25, "ece": 0.03, "count": 872, "accuracy_ci95": [0.8922, 0.92975]},
    **{
        "step": 20,
        "epoch": 2.0,
        "split": "validation",
        "checkpoint": "checkpoints/step-00000020",
        "selected": "the last one",
    },
}


@pytest.fixture
def settings(tiny_model: Path, tsv_files: tuple[Path, Path], tmp_path: Path) -> Settings:
    train_file, validation_file = map(str, tsv_files)
    return Settings(
        output_dir=str(tmp_path / "my-run"),
        model_name_or_path=str(tiny_model),
        train_file=train_file,
        validation_file=validation_file,
        label_names=[*LABEL_NAMES],
    )


@pytest.fixture
def trained(settings: Settings) -> tuple[DistilBertForSequenceClassification, DistilBertTokenizer]:
    tokenizer = load_tokenizer(settings)
    torch.manual_seed(0)
    return load_model(settings, tokenizer), tokenizer  # type: ignore[return-value]


def front_matter(card: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert match
    values: dict[str, Any] = yaml.safe_load(match[1])
    return values


def test_the_folder_is_a_stock_model_that_gives_the_same_answers(
    trained: tuple[Any, Any], settings: Settings, tmp_path: Path, tiny_model: Path
) -> None:
    model, tokenizer = trained
    model.train()
    card = model_card(settings, METRICS, 300)
    Export(model.config, model.state_dict(), tokenizer, SENTENCES, card).write(tmp_path / "model")
    assert model.training  # left as it was
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert len({path.stat().st_mode for path in (tmp_path / "model").iterdir()}) == 1  # readable for the same people
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert set(config) <= set(DistilBertConfig().to_dict()) | {"architectures", "dtype"}
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    assert (config["id2label"], config["dtype"]) == ({"0": "NEGATIVE", "1": "POSITIVE"}, "float32")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert tensors.keys() == DistilBertForSequenceClassification(model.config).state_dict().keys()

    answers: Any = pipeline("text-classification", str(tmp_path / "model"), top_k=None)(SENTENCES)
    with torch.inference_mode():
        batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
        expected = model.eval()(**batch).logits.softmax(dim=1)[:, 1].tolist()
    given = [next(a["score"] for a in answer if a["label"] == "POSITIVE") for answer in answers]
    assert given == pytest.approx(expected, abs=1e-5)

    for name in names - {"model.safetensors"}:  # a published file tells nothing about the machine
        text = (tmp_path / "model" / name).read_text()
        assert str(tmp_path) not in text
        assert str(tiny_model.parent) not in text


def test_the_card_says_how_good_the_model_is_and_how_sure_that_is(settings: Settings) -> None:
    card = model_card(replace(settings, learning_rate=3e-5, seed=7), METRICS, 300)
    header = front_matter(card)
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["sentiment-analysis", "distilbert", "sst2"],
    }
    assert "Fine-tuned from tiny-distilbert." in card
    assert "train.tsv: trained on 300 sentences, evaluated on 872 (validation)" in card
    assert "95 % interval of the accuracy (Wilson): 0.8922 to 0.9297" in card
    assert "Checkpoint: checkpoints/step-00000020, the last one." in card
    for row in ("| accuracy | 0.9128 |", "| roc_auc | 0.9700 |", "| ece | 0.0300 |", "| learning_rate | 3e-05 |"):
        assert row in card
    assert "| seed | 7 |" in card
    assert "roc_auc" not in model_card(settings, METRICS | {"roc_auc": None}, 300)


def test_a_base_model_that_a_run_has_exported_is_told_by_the_run(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "demo" / "model").mkdir(parents=True)
    card = model_card(replace(settings, model_name_or_path=str(tmp_path / "demo" / "model")), METRICS, 300)
    assert "Fine-tuned from the model of the run demo." in card
    assert str(tmp_path) not in card


def test_the_card_quotes_nothing_of_the_data(settings: Settings) -> None:
    assert 'MODEL")("a gripping, funny film")' in model_card(settings, METRICS, 300)
    topics = replace(settings, label_names=["sport", "politics"])
    assert 'MODEL")("a sentence of your own")' in model_card(topics, METRICS, 300)


def test_the_card_links_to_what_is_on_the_hub() -> None:
    header = front_matter(model_card(Settings(output_dir="runs/x"), METRICS, 67_349))
    assert header["base_model"] == "distilbert/distilbert-base-uncased"
    assert header["datasets"] == ["nyu-mll/glue"]
    smoke = Settings(output_dir="runs/x", smoke=True, model_name_or_path=SAMPLE, dataset_name=SAMPLE)
    card = model_card(smoke, METRICS, 5400)
    assert not {"base_model", "datasets"} & set(front_matter(card))
    assert "Fine-tuned from a tiny DistilBERT with random weights." in card


def test_the_card_does_not_take_a_folder_for_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder beside the job is named like this, without a slash, and nothing on the hub is meant by it.
    monkeypatch.chdir(tmp_path)
    for name in ("my-model", "my-data"):
        (tmp_path / name).mkdir()
    settings = Settings(output_dir="runs/x", model_name_or_path="my-model", dataset_name="my-data")
    assert not {"base_model", "datasets"} & set(front_matter(model_card(settings, METRICS, 10)))


def with_broken_weights(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")


def with_a_tokenizer_that_cannot_be_saved(model: Any, tokenizer: Any) -> None:
    # The DistilBERT class makes a normalizer of its own on loading, so this one is lost on the way.
    rules = [normalizers.Replace("gripping", "dull"), normalizers.BertNormalizer(lowercase=True)]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(rules)


@pytest.mark.parametrize("spoil", [with_broken_weights, with_a_tokenizer_that_cannot_be_saved])
def test_an_export_that_is_not_the_model_is_refused_and_the_earlier_one_stays(
    spoil: Callable[[Any, Any], None], trained: tuple[Any, Any], settings: Settings, tmp_path: Path
) -> None:
    model, tokenizer = trained
    sentences = ["a gripping film", *SENTENCES]
    Export(model.config, model.state_dict(), tokenizer, sentences, "first").write(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    healthy = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoil(model, tokenizer)
    with pytest.raises(RuntimeError, match="gives other logits than before it was saved"):
        Export(model.config, model.state_dict(), tokenizer, sentences, "second").write(tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    # What the failure left behind is no obstacle to another model.
    healthy["classifier.bias"] += 1
    model.load_state_dict(healthy)
    Export(model.config, model.state_dict(), load_tokenizer(settings), sentences, "third").write(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "third"
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_rehearsal_finds_what_the_export_would_stumble_over_and_leaves_nothing(
    trained: tuple[Any, Any], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = trained
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = tokenizer.backend_tokenizer.to_str()
    rehearse_export(settings, model.config, tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before  # padding would be exported
    with_a_tokenizer_that_cannot_be_saved(model, tokenizer)
    with pytest.raises(UserError, match=r"tiny-distilbert trained into .*/my-run could not be exp.*: .* other logits"):
        rehearse_export(settings, model.config, tokenizer)
    assert [*(tmp_path / "temporary").iterdir()] == []


def test_a_rehearsal_without_room_for_it_blames_the_temporary_folder(
    trained: tuple[Any, Any], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = trained
    temporary = tmp_path / "temporary"
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    blames = rf"no temporary file can be written in {temporary} \({{}}\): make room, or name a folder .* TMPDIR"
    with pytest.raises(LocalError, match=blames.format("No such file or directory")):
        rehearse_export(settings, model.config, tokenizer)
    temporary.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))  # the kernel's way to make any disk a small one
    try:
        with pytest.raises(LocalError, match=blames.format("File too large")):
            rehearse_export(settings, model.config, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*temporary.iterdir()] == []


def test_what_cannot_be_exported_is_found_before_the_first_step(
    small_job: list[object], tiny_model: Path, train_here: Callable[..., Finished], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "odd"))
    written = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(written | {"chat_template": {"default": 5}}))
    done = train_here(*small_job, "--model_name_or_path", folder)
    assert (done.code, done.run_dir.exists()) == (2, False)
    assert f"{folder} trained into {done.run_dir} could not be exported: " in done.stderr.splitlines()[-1]


def test_long_sentences_do_not_break_the_export(
    trained: tuple[Any, Any], settings: Settings, tiny_model: Path, tmp_path: Path
) -> None:
    # A folder that does not say how long its sentences may be; the model has 512 positions all the same.
    folder = Path(shutil.copytree(tiny_model, tmp_path / "without-maximum"))
    words = sample_tokenizer().get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=lambda word: words[word])) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    tokenizer = load_tokenizer(replace(settings, model_name_or_path=str(folder)))
    long = "a gripping film , " * 300
    Export(trained[0].config, trained[0].state_dict(), tokenizer, [long, *SENTENCES], "card").write(tmp_path / "model")
    answer = pipeline("text-classification", str(tmp_path / "model"), truncation=True)(long)
    assert answer[0]["label"] in ("NEGATIVE", "POSITIVE")
