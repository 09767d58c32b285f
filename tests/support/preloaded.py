"""What test processes would import and build one by one: done once, in the server that they are forked from."""

# ruff: noqa: F401
import deepspeed.runtime.zero.muon.muon_optimizer  # by DeepSpeed's engine: its decorator imports torch's compiler
import pytest
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import sst2.checkpoints.checkpointer
import sst2.data.splits
import sst2.distributed.strategies.deepspeed_zero
import sst2.evaluation.metrics
import sst2.tracking.plots
import train_sst2

get_checkpoint_conversion_mapping("distilbert")  # a table of all architectures, which takes half a second
