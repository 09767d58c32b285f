"""What a tiny model of a config shows before any weight of a checkpoint is used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForSequenceClassification

from sst2.config.settings import Settings
from sst2.models import attention, packed_classifier
from sst2.models.architecture import dropouts, tiny
from sst2.models.loading import load_tokenizer
from sst2.models.trial import findings_of, pack_classifier
from sst2.training.optimizer import parameter_groups
from sst2.utils.errors import UserError
from tests.support.architectures import PADDED, SHAPE, classifier_of, config_of, write_encoder
from tests.support.ranks import run_to_the_end


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial of another test counts, and none of these counts elsewhere."""
    monkeypatch.setattr("sst2.models.trial._FOUND", {})


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("t5", {}, "is a t5 model, an encoder with a decoder: give an encoder"),
        ("gpt2", {}, "is a gpt2 model whose tokens see none after them: give an encoder"),
        ("llama", {}, "is a llama model whose tokens see none after them: give an encoder"),
        ("bloom", {}, "is a bloom model whose tokens see none after them: give an encoder"),
        ("bert", {"is_decoder": True}, "is a bert model whose tokens see none after them: give an encoder"),
        ("vit", {}, "is a vit model, of which transformers has no sequence classifier: give an encoder"),
        ("fnet", {}, "is a fnet model, whose logits change with the padding beside a sentence"),
        ("canine", {}, "is a canine model, which does not work as a classifier of texts"),
        ("gptj", {}, r".* \(ValueError: no model of its config with less than 5,844,406,272 weights can be made"),
    ],
)
def test_what_is_no_encoder_for_batches_is_refused(
    name: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(name, **changes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"--model_name_or_path {tmp_path} {reason}"):
        load_tokenizer(Settings(output_dir="/nonexistent", model_name_or_path=str(tmp_path)))


def replace_attention(monkeypatch: pytest.MonkeyPatch, **kept: Any) -> None:
    """An attention function that differs from the project's on packed batches by what it is told."""

    def other(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if "query" in kept and kwargs.get("pack") is not None:
            query = kept["query"](query)
        return packed_classifier.packed_attention(module, query, *args, **kwargs | kept.get("keywords", {}))

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.PACKED_ATTENTION, other)


def test_a_model_whose_packed_logits_are_others_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_attention(monkeypatch, keywords={"pack": None})  # as of a model that hands on no pack
    assert not pack_classifier(classifier_of("modernbert")).can_pack


def test_a_window_that_packed_sentences_do_not_have_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_attention(monkeypatch, keywords={"sliding_window": None})
    assert findings_of(config_of("modernbert")).why_padded.startswith("packed logits differ from padded ones by ")


def test_packed_gradients_that_are_others_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_attention(monkeypatch, query=torch.Tensor.detach)  # whose logits are right
    why = findings_of(config_of("modernbert")).why_padded
    assert why.startswith("the packed gradient of model.")


def test_rules_for_special_tokens_are_found() -> None:
    """ESM scales its embeddings by how many <mask> a sentence has."""
    values = SHAPE | {"vocab_size": 300, "mask_token_id": 4, "pad_token_id": 1, "position_embedding_type": "rotary"}
    assert findings_of(AutoConfig.for_model("esm", **values, token_dropout=True)).why_padded
    assert dropouts(AutoConfig.for_model("esm", **values)) == [
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
    ]  # and not token_dropout, which is a switch


def test_lists_of_layers_are_cut_with_the_layers() -> None:
    config = AutoConfig.for_model("longformer", attention_window=[8] * 12, vocab_size=300)
    assert tiny(config).attention_window == [8, 8]
    assert not findings_of(config).sees_padding
    types = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert tiny(config_of("modernbert", layer_types=types)).layer_types == ["full_attention", "sliding_attention"]


def test_weights_that_no_logit_depends_on_are_known_and_do_not_decay() -> None:
    config = AutoConfig.for_model("big_bird", **SHAPE, vocab_size=300)
    model = pack_classifier(AutoModelForSequenceClassification.from_config(config))
    assert model.idle == {"bert.pooler.weight", "bert.pooler.bias"}
    decayed, exempt = (group["params"] for group in parameter_groups(model, 0.1))
    pooler = model.get_parameter("bert.pooler.weight")
    assert any(weight is pooler for weight in exempt)
    assert not any(weight is pooler for weight in decayed)
    assert pack_classifier(classifier_of("bert")).idle == frozenset()


@pytest.mark.slow
def test_idle_weights_hold_up_no_process(
    tmp_path: Path, tsv_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PADDED, "big_bird", ("Unigram", PADDED["mpnet"][1] | {"type_vocab_size": 2}))
    model = write_encoder("big_bird", tmp_path / "encoder")
    flags = ["--model_name_or_path", model, "--train_file", tsv_files[0], "--validation_file", tsv_files[1]]
    flags += ["--max_train_steps", 4, "--dropout", 0, "--max_length", 64, "--logging_steps", 1]
    flags += ["--global_batch_size", 32, "--weight_decay", 0.1, "--log_sample_ids"]
    one, two, zero = (
        run_to_the_end(flags, tmp_path / "one"),
        run_to_the_end(flags, tmp_path / "two", processes=2),
        run_to_the_end(flags, tmp_path / "zero", "deepspeed_zero2", 2),
    )
    losses = [[line["loss"] for line in run["curves"] if "loss" in line] for run in (one, two, zero)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
