"""What benchmarks/throughput.py measures this job against: a plain loop, and transformers' Trainer at its best."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from benchmarks.turns import Count, Loop, Step

Sampling = Literal["random", "group_by_length", "batch_rebalance"]
WORKERS = 4  # processes that prepare a Trainer's batches for a GPU; on a CPU they would take cores from the step


def tokenized(folder: Path, **options: Any) -> Any:
    """The training sentences as a `datasets.Dataset`, and their tokenizer."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    lines = (folder / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sentences, labels = zip(*(line.split("\t") for line in lines), strict=True)
    encoded = tokenizer(list(sentences), truncation=True, max_length=128, return_token_type_ids=False, **options)
    return Dataset.from_dict({**encoded, "labels": [*map(int, labels)]}), tokenizer


def classifier(folder: Path, attention: str | None = None) -> Any:
    """The stock model, in float32, with the attention that transformers chooses, or another of its own."""
    import torch
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        folder / "model", num_labels=2, dtype=torch.float32, attn_implementation=attention
    )


def plain(folder: Path, batch_size: int, precision: str, padding: str) -> Step:
    """A loop as it is usually written."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding, default_data_collator, get_scheduler

    from sst2.distributed.devices import runs_on_cpu

    accelerator = Accelerator(mixed_precision=precision, cpu=runs_on_cpu())
    options: dict[str, Any] = {"padding": "max_length"} if padding == "128" else {}
    data, tokenizer = tokenized(folder, **options)
    model = classifier(folder)
    collator = default_data_collator if padding == "128" else DataCollatorWithPadding(tokenizer)
    loader = DataLoader(data, shuffle=True, collate_fn=collator, batch_size=batch_size)
    decayed = [weight for name, weight in model.named_parameters() if not name.endswith(("bias", "LayerNorm.weight"))]
    exempt = [weight for name, weight in model.named_parameters() if name.endswith(("bias", "LayerNorm.weight"))]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-5)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=100, num_training_steps=10_000)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    model.train()

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            yield from loader

    endless = batches()

    def step() -> tuple[Count, Count]:
        batch = next(endless)
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return len(batch["labels"]), batch["attention_mask"].sum()

    return step


def mixed(indices: list[int], batch_size: int) -> list[int]:
    """The same batches in another order: of each 50 from long to short, any five in a row have one of every ten."""
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    order = (start + number % 5 * 10 + number // 5 for start in range(0, len(batches), 50) for number in range(50))
    return [index for place in order for index in (batches[place] if place < len(batches) else [])]


def trainer(
    folder: Path,
    batch_size: int,
    precision: str,
    sampling: Sampling,
    compiled: Literal["default", "reduce-overhead"] | None = None,
    backend: str = "inductor",
    attention: str | None = None,
) -> Loop:
    """The Trainer of transformers, with all that makes it faster and leaves what is computed as it is.

    That is its default fused AdamW, no look at the loss in each step, and on a GPU pinned batches that other processes
    prepare. `group_by_length` makes 50 batches at a time, from long to short sentences, which here come in the order of
    `mixed`. `batch_rebalance` splits a step evenly over ranks and micro-batches, of which there is one here.

    Args:
        folder: of `write_inputs`.
        batch_size: sentences of a step.
        precision: `no` or `bf16`.
        sampling: the argument `train_sampling_strategy`.
        compiled: the argument `torch_compile_mode`; None for no compilation. With `reduce-overhead`, which captures a
            CUDA graph for each shape, batches are padded to a multiple of 8 tokens: some nine shapes.
        backend: the argument `torch_compile_backend`; one that is no compiler is soon done, and gains nothing.
        attention: the model's `attn_implementation`; None for the default.
    """
    import torch
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    from sst2.distributed.devices import runs_on_cpu

    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=folder),
        max_steps=10**6,
        per_device_train_batch_size=batch_size,
        learning_rate=2e-5,
        warmup_steps=100,
        weight_decay=0.01,
        bf16=precision == "bf16",
        tf32=False if on_gpu and precision == "no" else None,  # which compiling would turn on
        use_cpu=runs_on_cpu(),
        train_sampling_strategy=sampling,
        torch_compile=compiled is not None,
        torch_compile_mode=compiled if backend == "inductor" else None,
        torch_compile_backend=backend if compiled else None,
        dataloader_num_workers=WORKERS if on_gpu else 0,
        dataloader_persistent_workers=on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would wait for the GPU in each step
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warn of the processes that prepare batches
    data, tokenizer = tokenized(folder)
    counts: list[tuple[Count, Count]] = []

    class CountingTrainer(Trainer):
        def _get_train_sampler(self, *words: Any) -> Any:
            sampler = super()._get_train_sampler(*words)
            return mixed(list(sampler or ()), batch_size) if sampling == "group_by_length" else sampler

        def training_step(self, model: Any, inputs: Any, *more: Any, **options: Any) -> Any:
            counts.append((len(inputs["labels"]), inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *more, **options)

    class Report(TrainerCallback):
        def __init__(self, after_step: Callable[[Count, Count], None]) -> None:
            self.after_step = after_step

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.after_step(*counts.pop())

    def run(after_step: Callable[[Count, Count], None]) -> None:
        multiple = 8 if compiled == "reduce-overhead" else None
        CountingTrainer(
            model=classifier(folder, attention),
            args=arguments,
            train_dataset=data,
            data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple),
            processing_class=tokenizer,
            callbacks=[Report(after_step)],
        ).train()

    return Loop(run)
