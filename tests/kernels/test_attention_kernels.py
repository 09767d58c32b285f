"""Triton's kernels for short sentences on a CPU, in triton's interpreter; compiled, their turn is in tests/gpu."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sst2.config.arguments import parse_arguments
from sst2.data.collation import collate
from sst2.data.packing import Pack
from sst2.models import attention
from sst2.models.attention import TRITON_ATTENTION, attend, by_triton, in_grids, triton_works
from sst2.models.loading import load_model, load_tokenizer
from sst2.models.trial import pack_classifier
from tests.models.test_architectures import CLASSES, gradients, split_of
from tests.support.architectures import PACKED, classifier_of, write_encoder
from tests.support.running import Finished

triton = pytest.importorskip("triton", reason="triton exists for Linux only")
pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="where there is a GPU, kernels are compiled for it: tests/gpu"
)
HEADS, WIDTH = 2, 16
LENGTHS = {
    "short": [13, 3, 32, 7, 7, 22, 3],
    "one sentence": [2],
    "around the size of a block": [31, 32, 33, 63, 64, 65],
    "long": [1, 2, 130],
}


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Whether they work is found out once a process, which takes the interpreter some seconds."""
    triton_works.cache_clear()
    yield
    triton_works.cache_clear()


def inputs(tokens: int, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(tokens, HEADS, width, generator=generator, requires_grad=True) for _ in range(3))
    return query, key, value


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=[*LENGTHS])
@pytest.mark.parametrize("spare", [0, 7])
@pytest.mark.parametrize(("one_each", "window"), [(False, None), (True, None), (False, 4)])
def test_they_give_what_grids_give(lengths: list[int], spare: int, one_each: bool, window: int | None) -> None:
    pack = Pack.of(np.array(lengths), 0)
    tokens = inputs(pack.num_tokens + spare)

    def run(way: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        query = tokens[0][pack.cls_indices] if one_each else tokens[0]
        mixed = way(query, tokens[1], tokens[2], pack, 0.0, 0.3, window)
        weights = torch.linspace(-1, 1, mixed.numel()).view_as(mixed)
        return [mixed, *torch.autograd.grad((mixed * weights).sum(), tokens)]

    for found, expected in zip(run(by_triton), run(in_grids), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("one_each", [False, True])
def test_dropout_has_the_gradients_of_the_weights_that_it_kept(one_each: bool) -> None:
    """Values that are unit vectors, one a token of the sentence, tell which weights have been kept."""
    probability, width = 0.25, 64
    pack = Pack.of(np.array([40, 5, 33]))
    query, key, _ = inputs(pack.num_tokens, width)
    place = torch.cat([torch.arange(length) for length in pack.lengths])
    units = torch.eye(width)[place][:, None].expand(-1, HEADS, -1).contiguous()
    value = torch.randn_like(units).requires_grad_()
    tokens = query, key, value

    def run(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        asked = query[pack.cls_indices] if one_each else query
        return by_triton(asked, key, values, pack, probability, 0.3)

    kept = run(units).detach()
    expected = []
    for sentence, start in enumerate(pack.cu_seqlens[:-1].tolist()):
        own = slice(start, start + int(pack.lengths[sentence]))
        asked = query[start : start + 1] if one_each else query[own]
        weights = torch.einsum("qhw,khw->qhk", asked * 0.3, key[own]).softmax(-1)
        masks = kept[sentence : sentence + 1] if one_each else kept[own]
        is_kept = masks[:, :, : weights.shape[2]] > 0
        expected.append(torch.einsum("qhk,khw->qhw", weights * is_kept / (1 - probability), value[own]))
    theirs, mine = torch.cat(expected), run(value)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for found, gradient in zip(
        torch.autograd.grad(mine.square().sum(), tokens),
        torch.autograd.grad(theirs.square().sum(), tokens),
        strict=True,
    ):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


def test_dropout_is_drawn_from_torchs_state_and_apart_for_each_head_and_call() -> None:
    pack = Pack.of(np.full(40, 30))
    query, key, _ = (torch.zeros(pack.num_tokens, HEADS, 32) for _ in range(3))
    units = torch.eye(32)[torch.arange(30).repeat(40)][:, None].expand(-1, HEADS, -1)

    def kept(seed: int, calls: int = 1) -> torch.Tensor:
        """(tokens, heads, keys) bool, of the last call."""
        torch.manual_seed(seed)
        for _ in range(calls):
            mixed = by_triton(query, key, units, pack, 0.1, 1.0)
        return mixed[:, :, :30] > 0

    first = kept(0)
    share = first.float().mean().item()
    assert abs(share - 0.9) < 0.006  # four standard errors of 72,000 draws are 0.0045
    assert torch.equal(first, kept(0))
    for other in (kept(1), kept(0, calls=2), first.flip(1), first.roll(30, 0), first.roll(8, 2)):
        agree = (first == other).float().mean().item()
        assert abs(agree - (0.9**2 + 0.1**2)) < 0.02, agree


def test_where_nothing_is_dropped_nothing_is_drawn() -> None:
    """Else an evaluation, or the trial at the start of a resumed run, would change the steps that come after it."""
    pack = Pack.of(np.array([3, 5]))
    before = torch.get_rng_state()
    by_triton(*inputs(8), pack, 0.0, 0.3)
    assert torch.equal(torch.get_rng_state(), before)
    by_triton(*inputs(8), pack, 0.1, 0.3)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", PACKED)
def test_every_packed_architecture_has_the_padded_logits_and_gradients(name: str, dtype: torch.dtype) -> None:
    """Under autocast to float16: the interpreter takes bits of bf16 for integers. EuroBERT has two types then."""
    stock = classifier_of(name, num_labels=CLASSES, **{"dim" if name == "distilbert" else "hidden_size": 64})
    ours = pack_classifier(copy.deepcopy(stock))
    ours.config._attn_implementation = TRITON_ATTENTION
    lengths = [13, 3, 40]
    split, rows = split_of(lengths, stock.config.vocab_size), np.arange(len(lengths))
    pad = stock.config.pad_token_id
    asked = triton_works.cache_info().hits
    with torch.autocast("cpu", torch.float16, enabled=dtype != torch.float32):
        expected, expected_gradients = gradients(stock, collate(split, rows, pad, "padded"))
        found, found_gradients = gradients(ours, collate(split, rows, pad, "packed"))
    assert triton_works(torch.device("cpu"), dtype, 16, name == "modernbert")
    assert triton_works.cache_info().hits > asked + 1  # they were asked, and ran
    rounding = 0.02 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for weight, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[weight], gradient, rtol=1e-3, atol=rounding * largest, msg=weight)


@pytest.mark.slow
def test_a_run_has_the_losses_of_grids_in_training_and_evaluation(
    asked_anew: None, train_here: Callable[..., Finished], tmp_path: Path
) -> None:
    """The sample's model has heads of width 16."""
    flags = ["--smoke", "--max_train_steps", 2, "--per_device_train_batch_size", 4, "--max_eval_samples", 20]
    flags += ["--dropout", 0, "--logging_steps", 1, "--mixed_precision", "no", "--kernels"]
    grids, kernels = (train_here(*flags, name, run_dir=tmp_path / name) for name in ("auto", "triton"))
    assert (grids.code, kernels.code) == (0, 0), kernels.stderr
    assert triton_works.cache_info().hits == 2 * (2 + 1) - 1  # of two layers, in two steps and an evaluation
    assert "without it" not in kernels.stderr
    for split in ("train", "validation"):
        losses = ([point["loss"] for point in run.logged(split)] for run in (grids, kernels))
        assert next(losses) == pytest.approx(next(losses), rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_run(train_here: Callable[..., Finished], tmp_path: Path) -> None:
    """Dropout included, and the evaluations before and after."""
    flags = ["--smoke", "--max_train_steps", 4, "--per_device_train_batch_size", 4, "--max_eval_samples", 8]
    flags += ["--eval_steps", 1, "--checkpointing_steps", 2, "--mixed_precision", "no"]
    flags += ["--kernels", "triton", "--gradient_checkpointing"]
    run = train_here(*flags, run_dir=tmp_path / "run")
    assert run.code == 0, run.stderr
    killed = Path(shutil.copytree(tmp_path / "run", tmp_path / "killed"))
    shutil.rmtree(killed / "checkpoints" / "step-00000004")
    shutil.rmtree(killed / "model")
    (killed / "metrics.json").unlink()
    resumed = train_here(*flags, "--resume_from_checkpoint", "auto", run_dir=killed)
    assert resumed.code == 0, resumed.stderr
    weights = [(one / "model" / "model.safetensors").read_bytes() for one in (tmp_path / "run", killed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("width", "interprets", "reason"),
    [
        (16, "0", "needs a GPU"),
        (24, "1", "needs heads of width 16, 32, 64, 128, and these have 24"),
    ],
)
def test_where_they_do_not_work_attention_goes_on_without(
    asked_anew: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    width: int,
    interprets: str,
    reason: str,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interprets)
    pack = Pack.of(np.array([3, 5]))
    tokens = inputs(8, width)
    found = attend(*tokens, pack, 0.0, 0.3, implementation=TRITON_ATTENTION)
    assert torch.equal(found, in_grids(*tokens, pack, 0.0, 0.3))
    assert f"--kernels triton {reason}: attention runs without it" in caplog.text


def test_a_model_that_cannot_be_packed_says_that_it_has_none(
    tmp_path: Path, tsv_files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = write_encoder("mpnet", tmp_path / "encoder")
    files = ["--train_file", tsv_files[0], "--validation_file", tsv_files[1], "--label_names", "0", "1"]
    flags = ["--model_name_or_path", encoder, *files, "--max_length", 64, "--kernels", "triton"]
    settings = parse_arguments([*map(str, flags)])
    load_model(settings, load_tokenizer(settings))
    assert "--kernels triton is for packed batches: attention runs without it" in caplog.text


def test_kernels_that_are_wrong_are_not_used(
    asked_anew: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = attention.by_triton
    monkeypatch.setattr(attention, "by_triton", lambda *args: right(*args) * 1.001)
    assert not triton_works(torch.device("cpu"), torch.float32, 16)
    assert "--kernels triton is wrong here" in caplog.text


def test_padded_batches_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["--smoke", "--batching", "padded", "--kernels", "triton"])
    assert "--kernels triton is for packed batches: drop it, or drop" in capsys.readouterr().err
