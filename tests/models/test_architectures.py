"""Every architecture that is packed gives the padded logits and gradients; one that cannot be is padded."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sst2.config.settings import Settings
from sst2.data.collation import Batch, collate
from sst2.data.splits import Split
from sst2.models.architecture import dropouts, encoder_blocks, first_position, max_positions
from sst2.models.loading import load_model, load_tokenizer
from sst2.models.trial import pack_classifier
from sst2.training.flops import flop_per_token
from sst2.training.setup import checkpoint_gradients
from tests.support.architectures import (
    COUNTED_FROM_PADDING,
    PACKED,
    PADDED,
    WHOLE_LAST_LAYER,
    classifier_of,
    config_of,
    write_encoder,
)

CLASSES = 5
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in PACKED} | {
    "modernbert, mean": ("modernbert", {"classifier_pooling": "mean"}),
    "eurobert, mean": ("eurobert", {"classifier_pooling": "mean"}),
    "eurobert, bos": ("eurobert", {"classifier_pooling": "bos"}),
}
LENGTHS = {
    "odd": [13, 3, 40, 7, 7, 22, 3],
    "one sentence": [17],
    "one token": [1],
    "1 to 512": [1, 2, 9, 10, 63, 64, 65, 128, 129, 300, 511, 512],
}


def split_of(lengths: list[int], vocabulary: int) -> Split:
    """Sentences of these numbers of tokens, whatever they are."""
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Split(
        name="train",
        sentences=[""] * len(lengths),
        labels=generator.integers(CLASSES, size=len(lengths)),
        input_ids=generator.integers(5, vocabulary, size=offsets[-1]).astype(np.int32),
        offsets=offsets,
    )


def gradients(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradient of the mean loss by the weights' names."""
    model.zero_grad()
    logits = model(**batch.inputs).logits
    F.cross_entropy(logits, batch.labels).backward()
    return logits.detach(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=[*LENGTHS])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_logits_and_gradients_are_the_padded_ones(variant: str, lengths: list[int]) -> None:
    name, changes = VARIANTS[variant]
    stock = classifier_of(name, num_labels=CLASSES, **changes)
    ours = pack_classifier(copy.deepcopy(stock))
    assert ours.can_pack
    split, rows = split_of(lengths, stock.config.vocab_size), np.arange(len(lengths))
    pad = stock.config.pad_token_id
    # in float64, so that what is left is no rounding: of one token alone some gradients are 0
    expected, expected_gradients = gradients(stock.double(), collate(split, rows, pad, "padded"))
    found, found_gradients = gradients(ours.double(), collate(split, rows, pad, "packed"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    assert found_gradients.keys() == expected_gradients.keys()
    for weight, gradient in expected_gradients.items():
        scale = max(float(gradient.abs().max()), 1e-6)
        torch.testing.assert_close(found_gradients[weight], gradient, rtol=0, atol=1e-5 * scale, msg=weight)


@pytest.mark.parametrize("name", PACKED)
def test_the_last_layer_is_computed_for_first_tokens_alone_where_its_block_is_known(name: str) -> None:
    ours = pack_classifier(classifier_of(name))
    assert ours.first_tokens_only == (name not in WHOLE_LAST_LAYER)


@pytest.mark.parametrize("name", [name for name in PACKED if name not in WHOLE_LAST_LAYER])
def test_each_dropout_of_a_block_of_first_tokens_is_drawn(name: str) -> None:
    """The trial has none."""
    model = pack_classifier(classifier_of(name)).train()
    split, pad = split_of([13, 3, 40], model.config.vocab_size), model.config.pad_token_id
    batch = collate(split, np.arange(3), pad, "packed")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    own = [module for module in encoder_blocks(model)[-1].modules() if isinstance(module, torch.nn.Dropout)]
    assert len(own) >= 2
    for probability in (0.0, 0.5):
        for dropout in own:
            dropout.p = probability
            first, second = (model(**batch.inputs).logits for _ in range(2))
            assert torch.equal(first, second) == (probability == 0)
            dropout.p = 0.0


@pytest.mark.parametrize("name", sorted(WHOLE_LAST_LAYER))
def test_attention_has_dropout_where_all_layers_are_whole(name: str) -> None:
    places = dropouts(config_of(name))
    for probability in (0.0, 0.5):
        changes = {place: probability if place.startswith("attention") else 0.0 for place in places}
        model = pack_classifier(classifier_of(name, **changes)).train()
        split, pad = split_of([13, 3, 40], model.config.vocab_size), model.config.pad_token_id
        batch = collate(split, np.arange(3), pad, "packed")
        first, second = (model(**batch.inputs).logits for _ in range(2))
        assert torch.equal(first, second) == (probability == 0)


@pytest.mark.parametrize("name", [name for name in PACKED if name != "albert"])
def test_gradient_checkpointing_computes_again_and_changes_nothing(name: str) -> None:
    ours = pack_classifier(classifier_of(name, num_labels=CLASSES)).train()
    for place in dropouts(ours.config):
        setattr(ours.config, place, 0.1)
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1  # whose draws are repeated as well
    batch = collate(split_of([13, 3, 40], ours.config.vocab_size), np.arange(3), ours.config.pad_token_id, "packed")
    linear = next(module for module in encoder_blocks(ours)[0].modules() if isinstance(module, torch.nn.Linear))
    calls: list[Any] = []
    linear.register_forward_hook(lambda *call: calls.append(call))
    found = []
    for enable in (lambda model: None, checkpoint_gradients):
        enable(ours)
        torch.manual_seed(0)
        found.append(gradients(ours, batch))
    assert len(calls) == 1 + 2
    (expected, expected_gradients), (logits, checkpointed) = found
    assert torch.equal(logits, expected)
    assert checkpointed.keys() == expected_gradients.keys()
    assert all(torch.equal(checkpointed[weight], gradient) for weight, gradient in expected_gradients.items())


@pytest.mark.parametrize("name", PADDED)
def test_what_keeps_no_sentences_apart_is_not_packed_and_stays_as_it_is(name: str) -> None:
    stock = classifier_of(name, num_labels=CLASSES)
    ours = pack_classifier(copy.deepcopy(stock))
    assert not ours.can_pack
    batch = collate(split_of([13, 3, 40], stock.config.vocab_size), np.arange(3), stock.config.pad_token_id, "padded")
    (expected, expected_gradients), (found, found_gradients) = (gradients(model, batch) for model in (stock, ours))
    assert torch.equal(found, expected)
    assert all(torch.equal(found_gradients[weight], gradient) for weight, gradient in expected_gradients.items())


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_trying_leaves_the_random_state_and_the_mode_alone(name: str) -> None:
    model = classifier_of(name).train()
    before = torch.get_rng_state()
    assert pack_classifier(model).training
    flop_per_token(model.config)
    max_positions(model.config)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_the_checkpoint_of_a_language_model_gets_a_head_and_keeps_its_encoder(name: str, tmp_path: Path) -> None:
    folder = write_encoder(name, tmp_path / "model")
    settings = Settings(output_dir="/nonexistent", model_name_or_path=str(folder), max_length=512, dropout=0.3)
    tokenizer = load_tokenizer(settings)
    assert tokenizer.model_max_length == 512
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    model = load_model(settings, tokenizer)
    assert model.can_pack == (name in PACKED)
    assert 0 < len(model.drawn) <= 8
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p} <= {0.3}
    assert {getattr(model.config, place) for place in dropouts(model.config)} == {0.3}


@pytest.mark.parametrize("name", COUNTED_FROM_PADDING)
def test_positions_are_counted_from_the_padding(name: str) -> None:
    model = classifier_of(name)
    assert first_position(model) == model.config.pad_token_id + 1
    assert max_positions(model.config) == 514 - model.config.pad_token_id - 1


@pytest.mark.parametrize("name", [name for name in COUNTED_FROM_PADDING if name in PACKED])
def test_a_text_that_names_the_padding_has_the_stock_positions(name: str) -> None:
    stock = classifier_of(name)
    ours, pad = pack_classifier(copy.deepcopy(stock)), stock.config.pad_token_id
    split = split_of([9, 4], stock.config.vocab_size)
    split.input_ids[[2, 3, 10]] = pad
    expected = stock(**collate(split, np.arange(2), pad, "padded").inputs).logits
    found = ours(**collate(split, np.arange(2), pad, "packed").inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "of_a_layer", "layers"),
    [
        ("bert", 4 * 32 * 32 + 2 * 32 * 48, 2),
        ("albert", 4 * 32 * 32 + 2 * 32 * 48, 2),  # whose layers share their weights
        ("modernbert", 4 * 32 * 32 + 3 * 32 * 48, 4),
        ("eurobert", 3 * 32 * 32 + 3 * 32 * 48, 2),  # half of the key and value heads
    ],
)
def test_the_arithmetic_of_a_token_is_that_of_all_layers(name: str, of_a_layer: int, layers: int) -> None:
    assert flop_per_token(config_of(name)) == 3 * 2 * of_a_layer * layers
