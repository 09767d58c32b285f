"""All ranks train the same: before the first step their settings, data and model are compared, and the odd one named.

Nothing else would notice. DistributedDataParallel gives every rank the weights of rank 0, and gradients of other labels
are averaged like any.
"""

import hashlib
import socket
from collections import Counter
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from sst2.config.flag_groups import DATA_FILES
from sst2.config.settings import Settings
from sst2.data.splits import Split
from sst2.utils.errors import UserError

# Places, which a node may have under another name. What is read there is compared.
PATHS = {"model_name_or_path", "dataset_name", *DATA_FILES, "output_dir", "stage_dir", "resume_from_checkpoint"}
# What the main process alone goes by.
MAIN_ONLY = {"report_to", "push_to_hub", "hub_model_id", "overwrite_output_dir", "json", "price_per_hour"}
NAMED = 8  # ranks in a message, at most


def require_agreement(
    accelerator: Accelerator, settings: Settings, model: Mapping[str, str], splits: Mapping[str, Split]
) -> None:
    """Stop where a rank would train something else than the others. All ranks call it.

    `model` is the SHA-256 of each part of the model that the run starts from.

    Raises:
        UserError: on every rank; it says what differs, on which ranks, on which hosts.
    """
    if accelerator.num_processes == 1:
        return
    values = {name: value for name, value in settings.values().items() if name not in PATHS | MAIN_ONLY}
    facts = {f"--{name}": _in_words(value) for name, value in values.items()}
    # As it was given: what a start makes of it by the run's folder, another host may see later (NFS caches files for
    # seconds), and rank 0 alone acts on it.
    facts["--resume_from_checkpoint"] = "given" if "resume_from_checkpoint" in settings.given else "left out"
    if accelerator.state.deepspeed_plugin is not None:
        facts["DeepSpeed's configuration"] = _digest(str(accelerator.state.deepspeed_plugin.deepspeed_config))
    facts |= {f"the {name} of the model": _short(digest) for name, digest in model.items()}
    facts |= {f"the {name} data": _short(split.fingerprint) for name, split in splits.items()}
    everyone = gather_object([(socket.gethostname(), facts)])
    if found := differences([host for host, _ in everyone], [facts for _, facts in everyone]):
        raise UserError(
            f"the ranks do not train the same: {'; '.join(found)}: start all of them with the same flags, files and "
            "revisions (--model_revision and --dataset_revision take a commit)"
        )


def differences(hosts: list[str], facts: list[dict[str, str]]) -> list[str]:
    """What ranks differ in, in words, by the host and the named facts of each; what most of them have is the usual."""
    found = []
    for name in {name: None for own in facts for name in own}:
        values = [own.get(name, "missing") for own in facts]
        ((usual, _),) = Counter(values).most_common(1)  # of two that are as frequent, that of the lowest rank
        odd = [rank for rank, value in enumerate(values) if value != usual]
        if odd:
            who = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in odd[:NAMED])
            who += " and more" if len(odd) > NAMED else ""
            found.append(f"{name} of {who} is {values[odd[0]]}, of the others {usual}")
    return found


def _in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _digest(text: str) -> str:
    return _short(hashlib.sha256(text.encode()).hexdigest())


def _short(digest: str) -> str:
    return f"sha256 {digest[:12]}"
