"""What a run is made of: processes, data, tokenizer and model, strategy, optimizer and schedule."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from sst2.checkpoints.base_model import BaseModel, checkpoint_for_base_model
from sst2.checkpoints.resume_compatibility import saved_precision
from sst2.config.settings import Settings
from sst2.data.splits import Split, load_sentences, tokenize_all, with_class_names
from sst2.data.staging import stage
from sst2.distributed.agreement import require_agreement
from sst2.distributed.init import init_distributed
from sst2.distributed.ranks import run_on_main
from sst2.distributed.strategies import prepare
from sst2.distributed.strategies.strategy import Strategy
from sst2.distributed.watchdog import Watchdog
from sst2.models.architecture import display_name
from sst2.models.export import rehearse_export
from sst2.models.loading import load_model, load_tokenizer
from sst2.models.packed_classifier import PackedClassifier
from sst2.training.optimizer import build_optimizer, build_schedule
from sst2.training.steps.choose import obstacle
from sst2.utils.errors import UserError, local_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assets:
    """Loaded, in host memory.

    Attributes:
        model: float32, not yet spread over the ranks.
        base_model: what tells it from another.
        splits: the data by name: `train`, and of `holdout`, `validation` and `test` those that there are.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PackedClassifier
    base_model: BaseModel
    splits: dict[str, Split]


def init_processes(settings: Settings) -> tuple[Accelerator, Settings, Watchdog]:
    """Bring all processes together, and watch them from now on. The settings come back with their precision."""
    accelerator, settings = init_distributed(settings, partial(saved_precision, settings))
    return accelerator, settings, Watchdog(settings.step_timeout)


def load_assets(
    accelerator: Accelerator, settings: Settings, check_stop: Callable[[], None]
) -> tuple[Assets, Settings]:
    """Load, check and compare everything. All ranks call it. What `check_stop` raises ends waiting and tokenizing.

    The settings come back with the names of the classes, which may have been found in the data, and with the
    batching that the model can do.

    Raises:
        UserError: something cannot be read, does not fit, or differs between ranks.
    """
    checkpoint = run_on_main(accelerator, lambda: checkpoint_for_base_model(settings))
    with local_errors(), ThreadPoolExecutor(max_workers=1) as beside:
        local = stage(settings, checkpoint, check_stop)
        sentences, tokenizer = load_sentences(local), load_tokenizer(local)
        settings, local = (with_class_names(one, sentences["train"]) for one in (settings, local))
        tokenizing = beside.submit(tokenize_all, sentences, tokenizer, settings, check_stop)
        set_seed(settings.seed)  # every rank draws the same new head
        model = load_model(local, tokenizer, with_weights=checkpoint is None)
        if settings.gradient_checkpointing:
            checkpoint_gradients(model)
        splits = tokenizing.result()
    base_model = BaseModel.of(model, tokenizer, checkpoint)
    run_on_main(accelerator, lambda: rehearse_export(settings, base_model.config, tokenizer))
    set_seed(settings.seed, device_specific=True)  # and dropout of its own
    require_agreement(accelerator, settings, base_model.fingerprint, splits)
    if settings.batching == "packed" and not model.can_pack:
        logger.warning(
            "%s models cannot be packed (in a trial, %s): batches are padded",
            *(display_name(model.config), model.why_padded),
        )
        settings = replace(settings, batching="padded")
    elif settings.batching == "packed" and not model.first_tokens_only:
        logger.info("%s: the last layer is computed for all tokens of a sentence", display_name(model.config))
    return Assets(tokenizer, model, base_model, splits), settings


def checkpoint_gradients(model: PackedClassifier) -> None:
    """Have blocks computed again in the backward pass. Raises UserError: transformers cannot do it for its kind."""
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"--gradient_checkpointing does not work with {display_name(model.config)} models: leave it out"
        )
    # the second name is what transformers before 5.21 calls it
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def prepare_training(accelerator: Accelerator, model: nn.Module, settings: Settings) -> tuple[Strategy, LRScheduler]:
    """Spread the model and its AdamW as the launcher has asked for, and make the schedule. All ranks call it."""
    optimizer = build_optimizer(model, settings)
    compress, flat = settings.gradient_compression == "bf16", settings.cuda_graphs == "yes" and not obstacle(settings)
    strategy = prepare(accelerator, model, optimizer, compress, flat, kernels=settings.kernels == "triton")
    return strategy, build_schedule(strategy.optimizer, settings)
