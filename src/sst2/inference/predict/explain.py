"""Which words speak for a prediction: layer integrated gradients on the word embeddings.

Sundararajan, Taly and Yan, 2017, *Axiomatic Attribution for Deep Networks* (arXiv:1703.01365), as captum has it
(`LayerIntegratedGradients`, BSD-3; Kokhlikyan et al., 2020, arXiv:2009.07896). The gradient of the predicted class's
logit with respect to the word embeddings is integrated along the straight line from a baseline to the sentence. The
baseline is a sentence as long whose words are all [PAD] between [CLS] and [SEP]; positions stay as they are.

Completeness (the paper's proposition 1): the attributions add up to the logit less the baseline's, but for the error of
the sum that stands for the integral. It is done again with twice as many steps until they do, within `TOLERANCE`; a
warning names a sentence for which `MOST_STEPS` are not enough.
"""

import logging
import re
from dataclasses import dataclass

import torch
from captum.attr import LayerIntegratedGradients

from sst2.inference.predict.classifier import Classifier
from sst2.inference.predict.highlight import Word
from sst2.models.architecture import first_position
from sst2.models.export import stock_classifier

logger = logging.getLogger(__name__)

TOLERANCE = 0.02  # of the sum of attributions against the difference of logits, absolute and relative
FIRST_STEPS, MOST_STEPS = 32, 512  # of the integral
TOKENS_AT_ONCE = 4096  # of forward passes with gradients: bounds memory whatever the length


@dataclass(frozen=True)
class Explanation:
    """Attributions of one sentence.

    Attributes:
        words: runs of characters without white space, with the sums of their word pieces; a sentence that was cut ends
            early.
        logit, baseline_logit: of the predicted class, for the sentence and for the baseline.
    """

    words: list[Word]
    logit: float
    baseline_logit: float

    @property
    def error(self) -> float:
        """How far the attributions are from adding up."""
        return sum(word.value for word in self.words) - (self.logit - self.baseline_logit)


class Explainer:
    """Explains what a classifier says, on the stock model with its weights, in float32."""

    def __init__(self, classifier: Classifier) -> None:
        self._tokenizer, self._max_length = classifier.tokenizer, classifier.max_length
        self._device = classifier.model.device
        self._model = stock_classifier(classifier.model.config, classifier.model.state_dict())
        self._model.eval().to(self._device).requires_grad_(False)  # the embeddings' gradient is all that is wanted
        self._method = LayerIntegratedGradients(self._logits, self._model.get_input_embeddings())
        self._first_position = first_position(self._model)

    def explain(self, sentence: str, target: int) -> Explanation:
        """What each word of a sentence did for the logit of the class `target`."""
        encoding = self._tokenizer(
            sentence,
            truncation=True,
            max_length=self._max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        input_ids = encoding["input_ids"].to(self._device)
        is_special = encoding["special_tokens_mask"].bool().to(self._device)
        baseline = torch.where(is_special, input_ids, self._tokenizer.pad_token_id)
        with torch.no_grad():
            logit, baseline_logit = self._logits(torch.cat([input_ids, baseline]))[:, target].tolist()
        difference, steps = logit - baseline_logit, FIRST_STEPS
        while True:
            values = self._integrate(input_ids, baseline, target, steps)
            error = abs(values.sum().item() - difference)
            if error <= TOLERANCE * max(1.0, abs(difference)):
                break
            if steps == MOST_STEPS:
                logger.warning("the attributions of %r miss the logit's difference by %.2g", sentence, error)
                break
            steps *= 2
        spans = encoding["offset_mapping"][0].tolist()
        pieces = [(*span, value) for span, value in zip(spans, values.tolist(), strict=True) if span[0] < span[1]]
        return Explanation(_whole_words(sentence, pieces), logit, baseline_logit)

    def _integrate(self, input_ids: torch.Tensor, baseline: torch.Tensor, target: int, steps: int) -> torch.Tensor:
        """(tokens,) float32, the attributions of the word pieces."""
        at_once = max(1, TOKENS_AT_ONCE // input_ids.shape[1])
        attributions = self._method.attribute(
            input_ids, baselines=baseline, target=target, n_steps=steps, internal_batch_size=at_once
        )
        weights: torch.Tensor = attributions.sum(dim=-1)[0].detach()
        return weights

    def _logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        # Positions are given, since some models leave the padding of a baseline out of their count.
        positions = self._first_position + torch.arange(input_ids.shape[1], device=self._device)
        logits: torch.Tensor = self._model(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), position_ids=positions[None]
        ).logits
        return logits


def _whole_words(sentence: str, pieces: list[tuple[int, int, float]]) -> list[Word]:
    """Word pieces (start, stop, value) added up over each run of characters without white space.

    A piece belongs to the word in which it ends: those of byte-level BPE and Unigram begin with the space before it.
    """
    words, before = [], 0
    for match in re.finditer(r"\S+", sentence):
        inside = [value for _, stop, value in pieces if before < stop <= match.end()]
        if inside:
            words.append(Word(match.start(), match.end(), sum(inside)))
        before = match.end()
    return words
