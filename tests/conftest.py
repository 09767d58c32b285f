"""What tests share: running the real job, in a process of its own or in this one, and small data and models for it."""

import atexit
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

# Before any library reads them: a cache of the session's own, no network, nothing of a launcher around the tests.
for _name in [
    name for name in os.environ if name.startswith(("ACCELERATE_", "HF_", "SLURM_", "TRANSFORMERS_", "OMP_"))
]:
    del os.environ[_name]
_HF_HOME = tempfile.mkdtemp(prefix="sst2-tests-")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
# No signal is ignored, as some are where a shell or nohup runs the tests in the background: jobs would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _signal in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_signal, signal.SIG_DFL)
# One thread: tiny models gain nothing from more, and two busy test runs on one machine would starve each other.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HOME": _HF_HOME, "HF_HUB_OFFLINE": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
# Without a GPU to compile them for, Triton's kernels are run operation by operation, as is decided when it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest  # noqa: E402

from tests.support.running import SCRIPT, Finished  # noqa: E402

# Files that take minutes, the longest first: begun last, one of them would keep one worker busy and the others waiting.
LONGEST = [
    *("slurm/test_batch_jobs.py", "slurm/test_sweep_jobs.py", "whole_run/test_faults.py"),
    "distributed/test_strategies.py",
    *("distributed/test_stopping.py", "distributed/test_architecture_runs.py", "distributed/test_hangup.py"),
    *("benchmarks/test_on_a_gpu.py", "distributed/test_elastic.py", "distributed/test_standstill.py"),
    *("whole_run/test_readme.py", "distributed/test_flat.py", "whole_run/test_real_data.py", "data/test_hub.py"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with `LONGEST`; otherwise keep the order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def same_logging() -> Iterator[None]:
    """What a job inside the test's process does to the project's messages ends with the test."""
    logger = logging.getLogger("sst2")
    before = logger.handlers, logger.level, logger.propagate
    hook = threading.excepthook
    yield
    threading.excepthook = hook
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Finished]:
    """Run `train_sst2.py` as users do: `train("--smoke", launcher=["accelerate", "launch"], HF_TOKEN="...")`."""

    def run(
        *flags: object, run_dir: Path | None = None, launcher: Sequence[str] = (sys.executable,), **variables: str
    ) -> Finished:
        run_dir = run_dir or tmp_path / "run"
        command = [*launcher, str(SCRIPT), *map(str, flags), "--output_dir", str(run_dir)]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        return Finished(done.returncode, done.stdout, done.stderr, run_dir)

    return run


@pytest.fixture
def train_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run the same job inside the test's process, which saves the seconds of importing torch."""
    from accelerate.state import AcceleratorState, GradientState

    from sst2.config.arguments import parse_arguments
    from sst2.distributed.stop_requests import StopRequests
    from sst2.utils.errors import OF_TRAINING, exit_codes
    from train_sst2 import main

    def run(*flags: object, run_dir: Path | None = None) -> Finished:
        run_dir = run_dir or tmp_path / "run"
        capfd.readouterr()
        code = 0
        try:
            with exit_codes("train_sst2.py", 0, ways_out=OF_TRAINING):
                main(parse_arguments([*map(str, flags), "--output_dir", str(run_dir)]), StopRequests())
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return Finished(code, *capfd.readouterr(), run_dir)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DistilBERT encoder with random weights, and its tokenizer, as `save_pretrained` leaves them."""
    import torch
    from transformers import DistilBertModel

    from sst2.data.sample import sample_config, sample_tokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny-distilbert"
    tokenizer = sample_tokenizer()
    torch.manual_seed(0)
    DistilBertModel(sample_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_classifier(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a random head that finds half of the sample's sentences positive, as a run exports it."""
    import torch
    from transformers import AutoTokenizer, DistilBertForSequenceClassification

    from sst2.data.sample import sample_sentences

    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("classifier") / "tiny-classifier"))
    torch.manual_seed(1)
    labels: dict[str, Any] = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    model = DistilBertForSequenceClassification.from_pretrained(tiny_model, **labels)
    batch = AutoTokenizer.from_pretrained(folder)(
        sample_sentences("validation")[0][:150], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        model.classifier.weight.mul_(20)
        logits = model.eval()(**batch).logits
        model.classifier.bias[0] += (logits[:, 1] - logits[:, 0]).quantile(0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def broken_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a weight that is not a number."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("broken") / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The repositories that the job reads by default, small: all three splits of SST-2, and a DistilBERT."""
    import datasets

    from sst2.data.sample import sample_sentences

    root = tmp_path_factory.mktemp("hub")
    data = root / "datasets" / "nyu-mll/glue"
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
            "idx": datasets.Value("int32"),
        }
    )
    configs = ""
    for config in ("cola", "sst2"):  # as on the hub, the repository holds more than SST-2
        configs += f"- config_name: {config}\n  data_files:\n"
        for split, size in {"train": 80, "validation": 40, "test": 20}.items():
            sentences, labels = sample_sentences("validation" if split == "validation" else "train")
            rows = slice(1000, 1000 + size) if split == "test" else slice(size)
            known = labels[rows] if split != "test" else [-1] * size
            table = {"sentence": sentences[rows], "label": known, "idx": list(range(size))}
            (data / config).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(table, features=features).to_parquet(
                data / config / f"{split}-00000-of-00001.parquet"
            )
            configs += f"  - split: {split}\n    path: {config}/{split}-*\n"
    (data / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# GLUE\n")

    model = root / "models" / "distilbert/distilbert-base-uncased"
    model.mkdir(parents=True)
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "modules.json").write_text("[]\n")  # of sentence-transformers; transformers reads no such file
    # Bait: weights as a pickle, which the real repository has as well, and code that its configuration asks to run.
    (model / "pytorch_model.bin").write_bytes(b"not to be read")
    (model / "modeling_bait.py").write_text("raise SystemExit('not to be run')\n")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_bait.Config", "AutoModel": "modeling_bait.Model"}
    (model / "config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="session")
def tsv_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Some sentences of the sample as GLUE writes them, 300 in train.tsv and 70 in dev.tsv."""
    from sst2.data.sample import sample_sentences

    folder = tmp_path_factory.mktemp("data")
    parts = (("train.tsv", 300, sample_sentences("train")), ("dev.tsv", 70, sample_sentences("validation")))
    for name, size, (sentences, labels) in parts:
        rows = [f"{s}\t{label}\n" for s, label in zip(sentences[:size], labels[:size], strict=True)]
        (folder / name).write_text("sentence\tlabel\n" + "".join(rows))
    return folder / "train.tsv", folder / "dev.tsv"


@pytest.fixture
def small_job(tiny_model: Path, tsv_files: tuple[Path, Path]) -> list[object]:
    """Flags of a job of a second or two: 300 sentences, 10 steps an epoch."""
    train_file, validation_file = tsv_files
    return [
        *("--model_name_or_path", tiny_model, "--train_file", train_file, "--validation_file", validation_file),
        *("--num_train_epochs", 2, "--learning_rate", 1e-3, "--logging_steps", 1),
    ]


@pytest.fixture(scope="session")
def long_job(tiny_model: Path, tsv_files: tuple[Path, Path]) -> list[object]:
    """Flags of a job that there is time to interrupt: 120 steps, a checkpoint every five of them."""
    return [
        *("--model_name_or_path", tiny_model, "--train_file", tsv_files[0], "--validation_file", tsv_files[1]),
        *("--num_train_epochs", 12, "--learning_rate", 1e-3, "--logging_steps", 1, "--log_sample_ids"),
        *("--global_batch_size", 32, "--checkpointing_steps", 5, "--eval_steps", 50),
    ]


@pytest.fixture(scope="session")
def undisturbed(long_job: list[object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`jobs.results` of the long job that nobody interrupts."""
    from tests.support.ranks import run_to_the_end

    return run_to_the_end(long_job, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture(scope="session")
def undisturbed_on_two(long_job: list[object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same on two processes."""
    from tests.support.ranks import run_to_the_end

    return run_to_the_end(long_job, tmp_path_factory.mktemp("undisturbed") / "run", processes=2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Where everything must run, as in continuous integration, a skipped test is a failed one."""
    report = yield
    if report.skipped and "SST2_FORBID_SKIPS" in os.environ:
        report.outcome = "failed"
        report.longrepr = f"skipped where skipping is forbidden: {report.longrepr}"
    return report
