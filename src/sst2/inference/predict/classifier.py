"""A trained classifier at work: sentences sorted by length, classified in batches, answered in their order."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sst2.config.class_names import names_in_order
from sst2.config.flag_groups import Precision
from sst2.data.packing import Pack, send
from sst2.data.tokenization import encode, encoder_of
from sst2.inference.predict.linear import use_faster_linear
from sst2.models.architecture import max_positions
from sst2.models.packed_classifier import PackedClassifier
from sst2.utils.errors import UserError

TOKENS_ON_CPU = 1024  # of a forward pass: activations that the caches hold, and few shapes for the library
TOKENS_ON_GPU = 1 << 15
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Classifier:
    """Sentences to logits.

    Attributes:
        labels: names of the classes 0, 1 and so on, as the model's configuration has them.
        limit: tokens that the model takes.
        max_length: tokens that a sentence is cut to, [CLS] and [SEP] included.
        num_cut: sentences that were, so far.
    """

    def __init__(
        self,
        model: PackedClassifier,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        max_length: int | None = None,
        precision: Precision = "no",
    ) -> None:
        """Move the model to its device, as it computes there.

        Args:
            model: in float32, on any device.
            tokenizer: of the model.
            device: to compute on.
            max_length: as in the model's training if None, where its tokenizer says so.
            precision: of matrix products, `no` for float32 throughout.

        Raises:
            UserError: `max_length` is more than the model takes.
        """
        self.limit = max_positions(model.config)
        if max_length is not None and not 3 <= max_length <= self.limit:
            raise UserError(
                f"--max_length {max_length} cannot work: give 3 to {self.limit}, which is what the model takes"
            )
        self.max_length = max_length or tokenizer.model_max_length
        self.num_cut = 0
        self.model = model.eval().to(device)
        if device.type == "cpu" and precision == "no":
            use_faster_linear(self.model)
        self.tokenizer = tokenizer
        id2label: Any = model.config.id2label
        self.labels = tuple(names_in_order(id2label))
        self._device = device
        self._tokens = TOKENS_ON_CPU if device.type == "cpu" else TOKENS_ON_GPU
        self._autocast = AUTOCAST.get(precision)
        self._encoder = encoder_of(tokenizer, self.max_length)

    @torch.no_grad()  # not inference_mode: attention tries FlashAttention out once, backward as well
    def logits(self, sentences: Sequence[str], done: Callable[[int], object] = lambda _: None) -> np.ndarray:
        """Classify some thousand sentences at once.

        Args:
            sentences: at least one.
            done: called with the number of sentences of each forward pass. On a GPU they are only on their way then.

        Returns:
            (sentences, classes) float32, in the order of the sentences.

        Raises:
            UserError: a logit is not finite.
        """
        ids, num_cut = encode(self._encoder, sentences)
        self.num_cut += num_cut
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        order = np.argsort(lengths, kind="stable")
        lengths = lengths[order]
        ends = np.cumsum(lengths)
        # All of them end to end in order of length: a batch is a slice.
        input_ids = np.fromiter(chain.from_iterable(ids[row] for row in order), np.int64, ends[-1])
        position_ids = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        parts = []
        # Around all batches, since weights are cast once in it.
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            for batch in slices(ends, self._tokens):
                tokens = slice(ends[batch.start] - lengths[batch.start], ends[batch.stop - 1])
                inputs = self._inputs(input_ids[tokens], position_ids[tokens], lengths[batch])
                parts.append(self.model(**inputs).logits)
                done(batch.stop - batch.start)
        logits = np.empty((len(ids), len(self.labels)), np.float32)
        logits[order] = torch.cat(parts).float().cpu().numpy()
        if not np.isfinite(logits).all():
            raise UserError("the model gives logits that are not finite: its weights are damaged")
        return logits

    def _inputs(self, input_ids: np.ndarray, position_ids: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
        """The model's arguments, of sentences that lie end to end: (tokens,) each, and (sentences,)."""
        arrays = {"input_ids": input_ids, "position_ids": position_ids}
        if not self.model.can_pack:
            is_token = np.arange(lengths.max()) < lengths[:, None]
            padded = np.full(is_token.shape, self.tokenizer.pad_token_id)
            padded[is_token] = input_ids
            arrays = {"input_ids": padded, "attention_mask": is_token.astype(np.int64)}
        inputs: dict[str, Any] = {name: send(torch.from_numpy(array), self._device) for name, array in arrays.items()}
        return inputs | ({"pack": Pack.of(lengths).to(self._device)} if self.model.can_pack else {})


def slices(ends: np.ndarray, most: int) -> Iterator[slice]:
    """Cut sentences into runs of at most `most` tokens, or one sentence where that has more.

    `ends` is (sentences,) int64, the number of tokens up to and with each sentence.
    """
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, stop)
        start = stop
