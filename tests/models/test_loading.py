"""Checkpoints of every kind load as the same float32 classifier, and nothing in their folders is executed."""

import json
import logging
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DistilBertForSequenceClassification, DistilBertModel

from sst2.config.flag_groups import SAMPLE
from sst2.config.settings import Settings
from sst2.data.sample import sample_tokenizer
from sst2.models.loading import load_model, load_tokenizer
from sst2.models.packed_classifier import PackedClassifier
from sst2.utils.errors import UserError
from tests.support.architectures import classifier_of, tokenizer_of
from tests.support.running import Bomb


def settings(model: Path, **flags: Any) -> Settings:
    return Settings(output_dir="/nonexistent", model_name_or_path=str(model), **flags)


def load(model: Path, **flags: Any) -> Any:
    return load_model(settings(model, **flags), load_tokenizer(settings(model, **flags)))


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What the module itself says."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sst2.models.loading")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def classifier(tiny_model: Path, classes: int) -> DistilBertForSequenceClassification:
    torch.manual_seed(1)
    return DistilBertForSequenceClassification.from_pretrained(tiny_model, num_labels=classes)


def assert_encoder_of(model: DistilBertForSequenceClassification, encoder: dict[str, torch.Tensor]) -> None:
    mine = model.distilbert.state_dict()
    assert mine.keys() == encoder.keys()
    for name, tensor in encoder.items():
        assert torch.equal(mine[name], tensor.float()), name


def test_a_bare_encoder_gets_a_head_of_the_seed(tiny_model: Path, log: list[str]) -> None:
    heads = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        model = load(tiny_model)
        assert_encoder_of(model, load_file(tiny_model / "model.safetensors"))
        heads.append(model.classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert model.config.label2id == {"NEGATIVE": 0, "POSITIVE": 1}
    assert log == 3 * [f"{tiny_model}: a new classification head"]


def test_a_checkpoint_stored_in_fp16_is_trained_in_float32(tiny_model: Path, folder: Path) -> None:
    encoder = DistilBertModel.from_pretrained(tiny_model).half()
    encoder.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    model = load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_encoder_of(model, encoder.state_dict())


def test_a_head_of_two_classes_is_kept(tiny_model: Path, folder: Path, log: list[str]) -> None:
    saved = classifier(tiny_model, 2)
    saved.save_pretrained(folder)
    model = load(folder)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert log[0] == f"{folder}: with its classification head"


def test_a_head_of_three_classes_is_replaced_and_the_encoder_kept(
    tiny_model: Path, folder: Path, log: list[str]
) -> None:
    saved = classifier(tiny_model, 3)
    saved.save_pretrained(folder)
    model = load(folder)
    assert model.classifier.weight.shape == (2, 64)
    assert model.config.num_labels == 2
    assert model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert_encoder_of(model, saved.distilbert.state_dict())
    assert log == [f"{folder}: a new classification head"]


@pytest.mark.parametrize("kind", ["missing", "of another shape"])
def test_a_checkpoint_without_all_of_the_encoder_is_refused(kind: str, folder: Path) -> None:
    # transformers would fill the gap with random weights and only warn.
    tensors = load_file(folder / "model.safetensors")
    name = "transformer.layer.1.ffn.lin2.weight"
    lost = tensors.pop(name)
    if kind == "of another shape":
        tensors[name] = lost[:, :-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{folder} lacks 1 weights of a DistilBERT, distilbert\.{name} for one"):
        load(folder)


@pytest.mark.parametrize("model", [None, Path(SAMPLE)], ids=["checkpoint", "sample"])
def test_the_dropout_flag_replaces_all_three(model: Path | None, tiny_model: Path) -> None:
    data = {"smoke": True, "dataset_name": SAMPLE} if model else {}

    def loaded(dropout: float | None) -> DistilBertForSequenceClassification:
        asked = settings(model or tiny_model, dropout=dropout, **data)
        classifier: DistilBertForSequenceClassification = load_model(asked, load_tokenizer(asked)).train()
        return classifier

    stock, changed, without = loaded(None).config, loaded(0.3), loaded(0.0)
    assert (stock.dropout, stock.attention_dropout, stock.seq_classif_dropout) == (0.1, 0.1, 0.2)
    config = changed.config
    assert (config.dropout, config.attention_dropout, config.seq_classif_dropout) == (0.3, 0.3, 0.3)
    assert {module.p for module in changed.modules() if isinstance(module, nn.Dropout)} == {0.3}
    # Without any, training mode is evaluation mode.
    batch = torch.randint(5, 500, (4, 12))
    trained = without(batch).logits
    assert torch.equal(trained, without(batch).logits)
    torch.testing.assert_close(trained, without.eval()(batch).logits)


@pytest.mark.parametrize("archive", [True, False])
def test_pickled_weights_are_refused_and_not_unpickled(archive: bool, folder: Path, tmp_path: Path) -> None:
    bomb, crater = folder / "pytorch_model.bin", tmp_path / "crater"
    torch.save({"weight": Bomb(crater)}, bomb) if archive else bomb.write_bytes(pickle.dumps(Bomb(crater)))
    torch.load(bomb, weights_only=False) if archive else pickle.loads(bomb.read_bytes())
    assert crater.exists()  # it works where it is let
    crater.unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"--model_name_or_path {folder}: .*model\.safetensors"):
        load(folder)
    assert not crater.exists()


@pytest.mark.parametrize("model_type", ["distilbert", "evil"])
def test_code_in_a_checkpoint_is_not_run(model_type: str, folder: Path, tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    (folder / "evil.py").write_text(f"open({str(crater)!r}, 'w')\nclass Evil: pass\n")
    remote: dict[str, Any] = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": remote}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    remote = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"auto_map": remote}))
    if model_type == "distilbert":
        assert isinstance(load(folder), PackedClassifier)
    else:
        with pytest.raises(UserError, match=f"--model_name_or_path {folder}"):
            load(folder)
    assert not crater.exists()


def sharded(folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Make it a checkpoint in several files. Returns the index."""
    model = DistilBertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    index: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text())
    return index


def test_a_checkpoint_in_several_files_is_read(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    assert len(set(sharded(folder, tmp_path)["weight_map"].values())) > 1
    assert_encoder_of(load(folder), load_file(tiny_model / "model.safetensors"))


@pytest.mark.parametrize("place", ["pytorch_model.bin", "../other.safetensors", "{tmp_path}/other.safetensors"])
def test_an_index_that_names_other_files_is_refused(place: str, folder: Path, tmp_path: Path) -> None:
    index, place = sharded(folder, tmp_path), place.format(tmp_path=tmp_path)
    file = next(iter(index["weight_map"].values()))
    tensors = load_file(folder / file)
    bomb, crater = folder / "pytorch_model.bin", tmp_path / "crater"
    torch.save({**tensors, "bomb": Bomb(crater)}, bomb)
    save_file(tensors, tmp_path / "other.safetensors", metadata={"format": "pt"})
    index["weight_map"] = {name: place if its == file else its for name, its in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"{folder}: model\.safetensors\.index\.json names {place}: no safetensors"):
        load(folder)
    assert not crater.exists()


def test_an_adapter_of_another_checkpoint_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')
    with pytest.raises(UserError, match=f"--model_name_or_path {folder} holds an adapter: merge it"):
        load(folder)


def test_weights_of_layers_that_the_config_has_not_are_told(folder: Path, log: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": 1}))
    assert len(load(folder).distilbert.transformer.layer) == 1
    assert log == [
        f"{folder}: 16 weights of more layers than the 1 of its config",
        f"{folder}: a new classification head",
    ]


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_cased_vocabulary_under_a_lower_casing_tokenizer_is_warned_of(
    lowercase: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = sample_tokenizer().get_vocab()
    for number in range(20):  # of 600
        del vocabulary[next(word for word, id_ in vocabulary.items() if id_ == 100 + number)]
        vocabulary[f"Word{number}"] = 100 + number
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda word: vocabulary[word])) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    logging.getLogger("sst2").propagate = True
    tokenizer = load_tokenizer(settings(folder))
    said = [record.getMessage() for record in caplog.records if record.name == "sst2.models.tokenizer"]
    assert len(said) == lowercase
    if lowercase:
        assert said[0].startswith(f"{folder}: 20 of 600 entries of its vocabulary have capital letters, Word")
        assert 'say "do_lower_case": false?' in said[0]
    assert (tokenizer.convert_tokens_to_ids("Word3") in tokenizer("Word3")["input_ids"]) is not lowercase


def test_the_token_of_padding_is_the_tokenizers_whatever_the_config_says(folder: Path) -> None:
    # torch does not train the embedding of that token: in a config made for another tokenizer it may be any word
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 7}))
    model = load(folder)
    assert model.config.pad_token_id == model.distilbert.embeddings.word_embeddings.padding_idx == 0


def test_a_folder_with_the_vocabulary_of_a_bert_gives_the_same_ids_and_no_token_types(folder: Path) -> None:
    # distilbert-base-uncased itself is published like this.
    expected = sample_tokenizer()
    vocabulary = expected.get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda word: vocabulary[word])) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    tokenizer = load_tokenizer(settings(folder))
    batch = tokenizer(["A Gripping , funny film", "dull"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == expected(["a gripping , funny film", "dull"], padding=True)["input_ids"]
    load_model(settings(folder), tokenizer)(**batch)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    tokenizer = sample_tokenizer()
    tokenizer.add_tokens("xyzzy")
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="the tokenizer has 601 entries, the model 600: they do not belong together"):
        load(folder)


def test_positions_are_counted_from_the_padding_of_the_config_whatever_the_tokenizers_is(tmp_path: Path) -> None:
    """As ChemBERTa's are: its tokenizer pads with another token than its config says."""
    tokenizer = tokenizer_of("WordPiece uncased")
    stock = classifier_of("roberta", vocab_size=len(tokenizer), pad_token_id=3, max_position_embeddings=68)
    stock.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer.pad_token_id != 3
    model = load(tmp_path, max_length=64).eval()
    assert model.config.pad_token_id == 3
    for ids in (tokenizer("a gripping film", return_tensors="pt"), {"input_ids": torch.full((1, 64), 7)}):
        assert torch.equal(model(input_ids=ids["input_ids"]).logits, stock(input_ids=ids["input_ids"]).logits)
    with pytest.raises(UserError, match="--max_length 65 is more than the 64 positions"):
        load_tokenizer(settings(tmp_path, max_length=65))


def test_weights_within_the_layers_that_the_architecture_has_not_are_refused(tmp_path: Path) -> None:
    """As of a BERT with relative positions, which transformers no longer has."""
    classifier_of("bert").save_pretrained(tmp_path)
    tokenizer_of("WordPiece uncased").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    place = "bert.encoder.layer.1.attention.self.distance_embedding.weight"
    save_file(weights | {place: torch.randn(9, 8)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"has weights that transformers' BERT does without, {place} for one"):
        load(tmp_path)


def test_a_head_without_its_pooler_is_ordered_by_the_names_of_its_classes(tmp_path: Path, log: list[str]) -> None:
    names = {0: "c", 1: "b", 2: "a"}
    stock = classifier_of("bert", id2label=names, label2id={name: number for number, name in names.items()})
    stock.save_pretrained(tmp_path)
    tokenizer_of("WordPiece uncased").save_pretrained(tmp_path)
    weights = {name: weight for name, weight in stock.state_dict().items() if "pooler" not in name}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load(tmp_path, label_names=["a", "b", "c"])
    assert torch.equal(model.classifier.weight, stock.classifier.weight.flip(0))
    assert model.drawn == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert "with its classification head, but for bert.pooler.dense.bias and the like, which are new" in " ".join(log)
