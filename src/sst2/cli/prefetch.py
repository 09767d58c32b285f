"""Fetch, check and tokenize what a run will read, so that it needs no network: for the login node of a cluster.

    sst2 prefetch [flags of train_sst2.py]

With the same flags, the run then finds model, data and token ids in the Hugging Face cache (`HF_HOME`, which all nodes
must see), also with `HF_HUB_OFFLINE=1`.
"""

import sys
from dataclasses import replace

import huggingface_hub

from sst2.config.settings import Settings
from sst2.data.splits import load_sentences, tokenize_all, with_class_names
from sst2.models.loading import load_model, load_tokenizer
from sst2.utils.console import say, standard_output
from sst2.utils.errors import exit_codes
from sst2.utils.logs import start_logging

PROGRAM = "sst2 prefetch"


def main(settings: Settings) -> None:
    """Raises UserError: model or data cannot be had, or do not fit the flags."""
    start_logging(is_main=True)
    settings = replace(settings, stage_dir=None)  # which is of the compute nodes
    tokenizer, sentences = load_tokenizer(settings), load_sentences(settings)
    settings = with_class_names(settings, sentences["train"])
    model = load_model(settings, tokenizer)
    splits = tokenize_all(sentences, tokenizer, settings)
    say(f"model {settings.model_name_or_path}: {model.num_parameters():,} parameters")
    for name, split in splits.items():
        say(f"{name}: {len(split):,} sentences, {len(split.input_ids):,} tokens")
    asked = "without asking the hub" if huggingface_hub.is_offline_mode() else "and as the hub has it"
    say(f"all there, {asked}: {huggingface_hub.constants.HF_HOME}")


if __name__ == "__main__":
    from sst2.config.arguments import read_settings

    with exit_codes(PROGRAM), standard_output():
        main(read_settings(sys.argv[1:], PROGRAM, "Fetch and tokenize what a run with the same flags will read."))
