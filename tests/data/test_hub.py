"""The default job, which reads its data and model from the hub, against a hub on the loopback interface.

The libraries' caching, retries and error handling are the real ones: only the address of the hub is another.
"""

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets.exceptions import DatasetGenerationError

from sst2.data import hub as hub_module
from sst2.data.sample import sample_sentences
from sst2.utils import console
from sst2.utils.errors import UserError
from tests.support.hub_server import HubServer, Repository
from tests.support.running import REPOSITORY, SCRIPT, Finished

Train = Callable[..., Finished]

DATASET, MODEL = "nyu-mll/glue", "distilbert/distilbert-base-uncased"
ROWS = {"train": 80, "validation": 40, "test": 20}  # of hub_root
SHORT = ("--max_train_steps", 3, "--per_device_train_batch_size", 8, "--logging_steps", 1)
FILE_ADDRESS = "/{repo_id}/resolve/{revision}/{filename}"
TOKEN = "hf_testsecret"
CODE_OR_PICKLE = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5")

# Several jobs that end before training, one after another, which imports torch once instead of for each.
JOBS = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
from accelerate.state import AcceleratorState
from sst2.config.arguments import PROGRAM, parse_arguments
from sst2.utils.errors import OF_TRAINING, exit_codes
from sst2.distributed.stop_requests import StopRequests
from train_sst2 import main
for flags in json.loads(sys.argv[2]):
    code = 0
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            with exit_codes(PROGRAM, 0, ways_out=OF_TRAINING):
                main(parse_arguments(flags), StopRequests())
        except SystemExit as stop:
            code = stop.code
    AcceleratorState._reset_state(reset_partial_state=True)
    print(json.dumps([code, stderr.getvalue()]))
"""


@dataclass
class Place:
    """A hub, a cache that jobs share, and the job that filled it: `warm` sets the last two."""

    hub: HubServer
    home: Path
    first: Finished | None = None
    requests: list[str] = field(default_factory=list)  # of the first job

    @property
    def variables(self) -> dict[str, str]:
        return {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home)}

    def commit(self, kind: str, name: str) -> str:
        return self.hub.find(kind, name).commit()

    def requests_since(self, start: int) -> list[str]:
        return without_library_chatter(self.hub.requests[start:])


@pytest.fixture(scope="module")
def place(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with HubServer(hub_root) as hub:
        yield Place(hub, tmp_path_factory.mktemp("home"))


@pytest.fixture
def warm(place: Place, train: Train, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The place after the default job has run there once, with an empty cache and without a token."""
    if place.first is None:
        start = len(place.hub.requests)
        place.first = train(*SHORT, run_dir=tmp_path_factory.mktemp("first") / "run", **place.variables)
        place.requests = place.requests_since(start)
    return place


@pytest.fixture(scope="module")
def closed_hub(hub_root: Path) -> str:
    """An address where nothing listens."""
    with HubServer(hub_root) as hub:
        pass
    return hub.url


@pytest.fixture
def go_online(monkeypatch: pytest.MonkeyPatch) -> Callable[[HubServer, Path], None]:
    """Have the libraries of this process ask a hub, and cache in a folder, until the test ends."""

    def go(hub: HubServer, home: Path) -> None:
        huggingface_hub.utils.close_session()
        for module, name, value in (
            (huggingface_hub.constants, "HF_HUB_OFFLINE", False),
            (huggingface_hub.constants, "ENDPOINT", hub.url),
            (huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + FILE_ADDRESS),
            (huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub")),
            (datasets.config, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_ENDPOINT", hub.url),
            (datasets.config, "HF_DATASETS_CACHE", home / "datasets"),
        ):
            monkeypatch.setattr(module, name, value)

    return go


def without_library_chatter(requests: list[str]) -> list[str]:
    """Leave out the list by which huggingface_hub names, in its user agent, the program that it runs in."""
    return [request for request in requests if request != "GET /api/agent-harnesses"]


def run_jobs(jobs: list[list[object]], folder: Path, **variables: str) -> list[Finished]:
    """Run jobs in one process. Each has a run folder of its own, numbered."""
    places = [folder / f"run{number}" for number in range(len(jobs))]
    flags = [[*map(str, job), "--output_dir", str(run)] for job, run in zip(jobs, places, strict=True)]
    command = [sys.executable, "-c", JOBS, str(REPOSITORY), json.dumps(flags)]
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    return [Finished(code, "", stderr, run) for (code, stderr), run in zip(ends, places, strict=True)]


def on_a_terminal(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[str, int]:
    """Run a command with a wide terminal as its stderr. Returns what it said there, and its code."""
    controller, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))
    said = b""
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=end, stdin=subprocess.DEVNULL) as process:
        os.close(end)
        with suppress(OSError):  # the end of what a terminal has to say, once nobody has it open
            while part := os.read(controller, 65536):
                said += part
    os.close(controller)
    return said.decode(), process.returncode


def assert_refused(run: Finished, *expected: str) -> None:
    """Exit code 2, one line that says why, and nothing written."""
    assert run.code == 2, run.stderr
    errors = [line for line in run.stderr.splitlines() if line.startswith("train_sst2.py: error: ")]
    assert len(errors) == 1, run.stderr
    for words in expected:
        assert words in errors[0]
    assert "Traceback" not in run.stderr
    assert "Retrying" not in run.stderr  # what huggingface_hub says before it asks a dead hub again
    assert not run.run_dir.exists()


def assert_same_model(one: Finished, other: Finished) -> None:
    assert one.code == other.code == 0, one.stderr + other.stderr
    weights = [(run.run_dir / "model" / "model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]


def size_of(folder: Path, pattern: str) -> tuple[str, str]:
    """How many files these are, or the name of the only one, and their size, in words."""
    files = list(folder.glob(pattern))
    size = sum(file.stat().st_size for file in files)
    what = f"{len(files)} files" if len(files) > 1 else files[0].name
    return what, f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_default_job_trains_on_what_the_hub_serves(warm: Place) -> None:
    run = warm.first
    assert run is not None
    assert run.code == 0, run.stderr
    assert (run.metrics["split"], run.metrics["count"], run.metrics["step"]) == ("validation", ROWS["validation"], 3)
    assert "test" not in run.metrics  # its labels are not public
    assert f"{DATASET} train has 80 sentences, SST-2 has 67349" in run.stderr
    assert f"{DATASET} validation has 40 sentences, SST-2 has 872" in run.stderr
    with (run.run_dir / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    of_test = [row for row in rows if row["split"] == "test"]
    assert [row["sentence"] for row in of_test] == sample_sentences("train")[0][1000:1020]
    assert {row["label"] for row in of_test} == {""}
    assert all(row["label"] for row in rows if row["split"] == "validation")
    exported = json.loads((run.run_dir / "model" / "config.json").read_text())
    assert exported["id2label"] == {"0": "NEGATIVE", "1": "POSITIVE"}
    assert (run.run_dir / "model" / "model.safetensors").is_file()
    for name, (what, size), kind in (
        (DATASET, size_of(warm.hub.root / "datasets" / DATASET, "sst2/*"), "dataset"),
        (MODEL, size_of(warm.hub.root / "models" / MODEL, "model.safetensors"), "model"),
    ):
        assert f"{kind} {name}: downloading {what}, {size}, to {warm.home / 'hub'}\n" in run.stderr
    assert run.stderr.count(": downloading ") == 2
    card = (run.run_dir / "model" / "README.md").read_text()
    assert f"base_model: {MODEL}" in card
    assert f"datasets: [{DATASET}]" in card


def test_the_hub_is_asked_for_data_and_weights_once_and_never_for_code_or_pickles(warm: Place) -> None:
    downloads = [request for request in warm.requests if request.startswith("GET ") and "/resolve/" in request]
    assert len(downloads) == len(set(downloads))
    # The weights come last, so nothing was asked during training or after it.
    assert warm.requests[-1].endswith("/model.safetensors")
    assert [name for name in downloads if name.endswith(CODE_OR_PICKLE)] == []
    asked = {request for request in warm.requests if request.endswith(CODE_OR_PICKLE)}
    # datasets asks whether a repository has a loading script, in order to refuse it.
    assert asked == {f"HEAD /datasets/{DATASET}/resolve/{warm.commit('datasets', DATASET)}/glue.py"}
    assert [name for name in downloads if "/cola/" in name] == []


@pytest.mark.slow
def test_a_terminal_shows_downloads_and_evaluations_and_nothing_else_does(
    warm: Place, train: Train, tmp_path: Path
) -> None:
    assert warm.first is not None
    assert "%|" not in warm.first.stderr
    variables = warm.variables | {"HF_HOME": str(tmp_path / "cold")}
    command = [sys.executable, str(SCRIPT), *map(str, SHORT), "--output_dir", str(tmp_path / "run")]
    said, code = on_a_terminal(command, tmp_path, os.environ | variables)
    assert code == 0, said
    bars = {line.split(":")[0].strip() for line in re.split(r"[\r\n]+", said) if "%|" in line}
    for expected in ("/model.safetensors", "/train-00000-of-00001.parquet", "evaluating validation"):
        assert any(bar.endswith(expected) for bar in bars), bars
    assert "? batches/s" in said


def test_a_second_start_takes_all_from_the_cache_and_uploads_the_export(
    warm: Place, train: Train, tmp_path: Path
) -> None:
    start = len(warm.hub.requests)
    commits = ["--dataset_revision", warm.commit("datasets", DATASET), "--model_revision", warm.commit("models", MODEL)]
    flags = [*SHORT, *commits, "--push_to_hub"]
    run = train(*flags, run_dir=tmp_path / "my-run", HF_TOKEN=TOKEN, **warm.variables)
    assert run.code == 0, run.stderr
    for split, size in ROWS.items():
        assert f"{split}: {size} sentences, tokenized earlier" in run.stderr
    assert "tokenizing" not in run.stderr
    assert "downloading" not in run.stderr
    assert warm.first is not None
    assert_same_model(run, warm.first)
    requests = warm.requests_since(start)
    assert [request for request in requests if request.startswith("GET") and "/resolve/" in request] == []

    assert f"uploaded to {warm.hub.url}/tester/my-run" in run.stderr
    uploaded = Repository("tester/my-run", warm.hub.root / "models" / "tester" / "my-run")
    assert uploaded.files() == contents(run.run_dir / "model")
    end = requests[requests.index("POST /api/repos/create") :]
    expected = r"POST /api/(repos/create|validate-yaml|models/tester/my-run/(preupload|commit)/main)"
    assert [request for request in end if not re.fullmatch(expected, request)] == []

    assert warm.hub.authorizations == {f"Bearer {TOKEN}"}
    for path in (*run.run_dir.rglob("*"), *warm.home.rglob("*")):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in run.stdout + run.stderr


def test_uploading_to_a_repository_by_name(
    place: Place, train_here: Train, small_job: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", place.hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    flags = ["--max_train_steps", 1, "--push_to_hub", "--hub_model_id", "somebody/sentiment"]
    (place.hub.root / "models" / "somebody" / "sentiment").mkdir(parents=True)
    run = train_here(*small_job, *flags)
    assert run.code == 0, run.stderr
    assert f"uploaded to {place.hub.url}/somebody/sentiment" in run.stderr
    uploaded = Repository("somebody/sentiment", place.hub.root / "models" / "somebody" / "sentiment")
    assert uploaded.files() == contents(run.run_dir / "model")


def test_a_dry_run_tries_the_login_and_uploads_nothing(
    place: Place, train_here: Train, small_job: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", place.hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    flags = ["--max_train_steps", 1, "--push_to_hub", "--hub_model_id", "somebody/else"]
    (place.hub.root / "models" / "somebody" / "else").mkdir(parents=True)
    start = len(place.hub.requests)
    assert train_here(*small_job, *flags, "--dry_run").code == 0
    assert place.requests_since(start) == ["GET /api/whoami-v2"]
    assert train_here(*small_job, *flags).code == 0
    start = len(place.hub.requests)
    finished = train_here(*small_job, *flags, "--resume_from_checkpoint", "auto", "--dry_run")
    assert "has finished already" in finished.stderr
    assert place.requests_since(start) == ["GET /api/whoami-v2"]
    monkeypatch.delenv("HF_TOKEN")
    assert_refused(train_here(*small_job, *flags, "--dry_run", run_dir=place.home / "run"), "needs a token")


def test_a_warm_cache_is_enough_when_the_hub_is_down(warm: Place, train: Train, closed_hub: str) -> None:
    run = train(*SHORT, **warm.variables | {"HF_ENDPOINT": closed_hub})
    assert run.code == 0, run.stderr
    assert run.stderr.count("the hub does not answer") == 1
    assert "going on with what is cached" in run.stderr
    assert "Retrying" not in run.stderr
    assert warm.first is not None
    assert_same_model(run, warm.first)


def test_offline_with_a_warm_cache_makes_no_request(warm: Place, train: Train) -> None:
    before = list(warm.hub.requests)
    run = train(*SHORT, **warm.variables | {"HF_HUB_OFFLINE": "1"})
    assert warm.hub.requests == before
    assert "the hub does not answer" not in run.stderr
    assert warm.first is not None
    assert_same_model(run, warm.first)


def test_offline_never_takes_another_revision_of_the_data_than_the_one_asked_for(
    warm: Place, train_here: Train, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", warm.home / "datasets")
    flags = [*SHORT, "--model_name_or_path", tiny_model, "--dataset_revision"]
    assert_refused(train_here(*flags, "0" * 40), "--dataset_revision", "0" * 40)
    run = train_here(*flags, warm.commit("datasets", DATASET))
    assert run.code == 0, run.stderr


def test_offline_with_a_cold_cache_says_what_to_do(place: Place, train: Train, tmp_path: Path) -> None:
    before = list(place.hub.requests)
    run = train(*SHORT, **place.variables | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cold")})
    assert_refused(run, f"--dataset_name {DATASET}", "not in the cache", "HF_HUB_OFFLINE")
    assert place.hub.requests == before


def test_a_hub_that_does_not_answer_is_asked_once(hub_root: Path, train: Train, tmp_path: Path) -> None:
    with HubServer(hub_root, delay=30) as hub:
        run = train(*SHORT, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "cold"))
    assert_refused(run, f"--dataset_name {DATASET}", "not in the cache")
    assert "the hub does not answer (ReadTimeout" in run.stderr
    assert without_library_chatter(hub.requests) == [f"GET /api/datasets/{DATASET}/revision/main"]


def test_a_hub_that_is_down_ends_the_job_at_once(closed_hub: str, tmp_path: Path) -> None:
    variables = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": closed_hub, "HF_HOME": str(tmp_path / "cold")}
    # The upload first: a job that has found the hub down asks it nothing more, nor do those after it in its process.
    jobs = [[*SHORT, "--push_to_hub"], [*SHORT]]
    upload, default = run_jobs(jobs, tmp_path, HF_TOKEN=TOKEN, **variables)
    assert_refused(default, f"--dataset_name {DATASET}", "not in the cache")
    assert default.stderr.count("the hub does not answer (ConnectError") == 1
    assert_refused(upload, "--push_to_hub")


def test_wrong_names_are_told_after_one_request(place: Place, tsv_files: tuple[Path, Path], tmp_path: Path) -> None:
    start = len(place.hub.requests)
    files = ["--train_file", tsv_files[0], "--validation_file", tsv_files[1]]
    missing = "0" * 40
    cases: list[tuple[list[object], tuple[str, ...], str]] = [
        (
            ["--dataset_revision", missing],
            (f"--dataset_name {DATASET} has no revision {missing}",),
            f"GET /api/datasets/{DATASET}/revision/{missing}",
        ),
        (
            ["--dataset_name", "nyu-mll/gleu"],
            ("--dataset_name nyu-mll/gleu", "check its name"),
            "GET /api/datasets/nyu-mll/gleu/revision/main",
        ),
        (
            [*files, "--model_revision", missing],
            (f"--model_name_or_path {MODEL} has no revision {missing}",),
            f"GET /api/models/{MODEL}/revision/{missing}",
        ),
        (
            [*files, "--model_name_or_path", "distilbert/distilbert-base-uncase"],
            ("--model_name_or_path distilbert/distilbert-base-uncase", "check its name"),
            "GET /api/models/distilbert/distilbert-base-uncase/revision/main",
        ),
        ([*files, "--model_name_or_path", "no such name"], ("--model_name_or_path no such name",), ""),
        (["--push_to_hub"], ("--push_to_hub needs a token",), ""),
        (["--dataset_config_name", "sst3"], ("sst3", "'sst2'"), ""),  # last: it takes the library some requests
    ]
    variables = place.variables | {"HF_HOME": str(tmp_path / "cold")}
    ends = run_jobs([[*SHORT, *flags] for flags, _, _ in cases], tmp_path, **variables)
    for run, (_, expected, _) in zip(ends, cases, strict=True):
        assert_refused(run, *expected)
    requests, single = place.requests_since(start), [request for _, _, request in cases if request]
    assert requests[: len(single)] == single
    assert all(DATASET in request for request in requests[len(single) :])
    assert [request for request in requests if request.endswith(".parquet")] == []


def test_a_login_page_in_place_of_the_hub_leaves_the_cache(
    warm: Place, train_here: Train, go_online: Callable[[HubServer, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm.hub, "faults", {".": "portal"})
    go_online(warm.hub, warm.home)
    run = train_here(*SHORT)
    assert f"what answers at {warm.hub.url} is no hub" in run.stderr
    assert warm.first is not None
    assert_same_model(run, warm.first)


def test_what_need_not_be_downloaded_or_is_not_known_to_be_is_not_announced(
    hub_root: Path,
    go_online: Callable[[HubServer, Path], None],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level("INFO", "sst2")
    root = Path(shutil.copytree(hub_root, tmp_path / "hub"))
    flat = root / "datasets" / "somebody" / "flat"
    flat.mkdir(parents=True)
    (flat / "train.csv").write_text("sentence,label\n")

    def announced(name: str, kind: str, config_name: str | None = None) -> list[str]:
        caplog.clear()
        with hub_module.reading_from_hub("FLAG", name, kind, "main", config_name):
            pass
        return [message for message in caplog.messages if "downloading" in message]

    with HubServer(root) as hub:
        go_online(hub, tmp_path / "home")
        assert len(announced(MODEL, "model")) == 1
        assert announced(MODEL, "model") == []  # once is enough
        with hub_module.reading_from_hub("FLAG", MODEL, "model", "main"):
            huggingface_hub.hf_hub_download(MODEL, "model.safetensors")
        (root / "models" / MODEL / "README.md").write_text("Other words: another commit, of the same weights.\n")
        assert announced(MODEL, "model") == []
        (root / "models" / MODEL / "model.safetensors").rename(root / "models" / MODEL / "model.fp16.safetensors")
        assert announced(MODEL, "model") == []  # which transformers does not take
        shards = [root / "models" / MODEL / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        for shard in shards:
            shard.write_bytes(bytes(300_000))
        said = announced(MODEL, "model")
        assert said == [f"model {MODEL}: downloading 2 files, 0.6 MB, to {tmp_path / 'home' / 'hub'}"]

        assert announced("somebody/flat", "dataset", "sst2") == []
        assert announced("somebody/flat", "dataset") == []
        prepared = tmp_path / "home" / "datasets" / "nyu-mll___glue" / "sst2" / "0.0.0"
        (prepared / hub.find("datasets", DATASET).commit()).mkdir(parents=True)
        assert announced(DATASET, "dataset", "sst2") == []
        (root / "datasets" / DATASET / "README.md").write_text("Another commit.\n")
        assert len(announced(DATASET, "dataset", "sst2")) == 1


def test_a_log_file_says_how_far_a_download_has_come(
    hub_root: Path,
    go_online: Callable[[HubServer, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Also where the hub offers a file by Xet, which would pass by what counts the bytes, and by its limit of time."""
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    caplog.set_level("INFO", "sst2")
    root = Path(shutil.copytree(hub_root, tmp_path / "hub"))
    size = 8_000_000
    (root / "models" / MODEL / "model.safetensors").write_bytes(bytes(size))
    with HubServer(root) as hub:
        go_online(hub, tmp_path / "home")
        before = huggingface_hub.constants.HF_HUB_DISABLE_XET
        with hub_module.reading_from_hub("FLAG", MODEL, "model", "main"):
            huggingface_hub.hf_hub_download(MODEL, "model.safetensors")
        assert huggingface_hub.constants.HF_HUB_DISABLE_XET is before  # what is uploaded goes as it went
    lines = [message for message in caplog.messages if message.startswith("downloading: ")]
    assert lines
    assert all(re.fullmatch(rf"downloading: [\d,]+ of {size:,} bytes \(\d+ %\), .* left", line) for line in lines)


def test_xet_is_used_where_it_is_asked_for(
    place: Place, go_online: Callable[[HubServer, Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    go_online(place.hub, tmp_path / "home")
    with pytest.raises(UserError, match="FLAG"), hub_module.reading_from_hub("FLAG", MODEL, "model", "main"):
        huggingface_hub.hf_hub_download(MODEL, "model.safetensors")  # which the hub of the tests knows nothing of


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ({".": "portal"}, (f"--dataset_name {DATASET}", "not in the cache")),
        (
            {"HEAD .*parquet": "portal"},
            (f"--dataset_name {DATASET}", "not seem to be served by a Hugging Face Hub"),
        ),
        ({"GET .*parquet": "portal"}, (f"--dataset_name {DATASET}", "file should be of size")),
        ({".": "drip"}, (f"--dataset_name {DATASET}", "not in the cache")),
        ({"GET .*parquet": "drip"}, (f"--dataset_name {DATASET}", "bytes a second", "HF_HUB_OFFLINE=1")),
        ({"GET .*model.safetensors": "drip"}, (f"--model_name_or_path {MODEL}", "bytes a second", "HF_HUB_OFFLINE=1")),
        pytest.param(
            {"GET .*parquet": "cut"},
            (f"--dataset_name {DATASET}", "connection to the hub was lost", "HF_HUB_OFFLINE=1"),
            marks=pytest.mark.slow,  # the libraries try again for five seconds
        ),
        pytest.param(
            {"GET .*model.safetensors": "cut"},
            (f"--model_name_or_path {MODEL}", "connection to the hub was lost", "HF_HUB_OFFLINE=1"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_a_hub_that_breaks_off_ends_the_job_in_one_line(
    faults: dict[str, Any],
    expected: tuple[str, ...],
    hub_root: Path,
    train_here: Train,
    go_online: Callable[[HubServer, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(hub_module, "ANSWER_TIMEOUT", 1.0)
    monkeypatch.setattr(hub_module, "SLOW_FOR", 1.0)
    with HubServer(hub_root) as hub:
        hub.faults = faults
        go_online(hub, tmp_path / "home")
        assert_refused(train_here(*SHORT), *expected)


def test_damaged_data_on_the_hub_are_told_in_one_line(
    hub_root: Path, train_here: Train, go_online: Callable[[HubServer, Path], None], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(hub_root, tmp_path / "hub"))
    file = next(root.rglob("sst2/train-*.parquet"))
    content = bytearray(file.read_bytes())
    content[100:1500] = bytes(1400)  # the beginning, "PAR1", and the end are whole
    file.write_bytes(content)
    with HubServer(root) as hub:
        go_online(hub, tmp_path / "home")
        run = train_here(*SHORT)
    cached = tmp_path / "home" / "hub" / "datasets--nyu-mll--glue"
    assert_refused(run, f"--dataset_name {DATASET}", "damaged", f"remove {cached} to load them anew")
    assert cached.is_dir()


def test_a_full_cache_is_not_taken_for_damaged_data(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    reading = hub_module.reading_from_hub("--dataset_name", str(tmp_path), "dataset", "main")
    with pytest.raises(UserError, match=r"^--dataset_name .*No space left on device.*: make room"), reading:
        raise DatasetGenerationError("An error occurred while generating the dataset") from full


def test_a_cache_that_cannot_be_written_is_told_as_such(
    hub_root: Path,
    train_here: Train,
    go_online: Callable[[HubServer, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with HubServer(hub_root) as hub:
        go_online(hub, tmp_path / "home")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/sys/sst2-cache")  # where nobody may make a folder
        run = train_here(*SHORT)
    assert_refused(
        run, f"--dataset_name {DATASET}: the cache ", "cannot be written (", "/sys/sst2-cache", "set HF_HOME"
    )


def fail_to_write() -> None:
    Path("/sys/sst2-cache").mkdir()


def fail_to_write_in_other_words() -> None:
    try:
        fail_to_write()
    except OSError:
        raise OSError("We couldn't connect to the hub to load this file") from None


def fail_to_read() -> None:
    raise OSError(errno.EIO, "Input/output error", "/cache/model.safetensors")


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (
            fail_to_write,
            r"MODEL a/b: the cache .* cannot be written \(.*: /sys/sst2-cache\): have it writable, or set HF_",
        ),
        (fail_to_write_in_other_words, r"MODEL a/b: the cache .* cannot be written \(.*: /sys/sst2-cache\)"),
        (fail_to_read, r"MODEL a/b: /cache/model.safetensors cannot be used \(Input/output error\): see to its disk"),
    ],
)
def test_what_a_disk_answers_is_not_taken_for_a_cold_cache(fail: Callable[[], None], expected: str) -> None:
    assert huggingface_hub.is_offline_mode()
    with pytest.raises(UserError, match=expected), hub_module.reading_from_hub("MODEL", "a/b", "model", "main"):
        fail()


def test_the_password_in_the_hubs_address_stays_out_of_messages_and_files(
    hub_root: Path,
    train_here: Train,
    small_job: list[object],
    go_online: Callable[[HubServer, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    password = "opens@ll"
    with HubServer(hub_root) as hub:
        address = hub.url
        hub.url = hub.url.replace("://", f"://somebody:{password}@")
        go_online(hub, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        uploaded = train_here(*small_job, "--max_train_steps", 1, "--push_to_hub", run_dir=tmp_path / "uploaded")
        assert uploaded.code == 0, uploaded.stderr
        assert f"uploaded to {address.replace('://', '://***@')}/tester/uploaded" in uploaded.stderr
        hub.faults = {"HEAD .*parquet": "portal"}
        refused = train_here(*SHORT, run_dir=tmp_path / "refused")
        assert_refused(refused, f"Response from {address.replace('://', '://***@')}/datasets/{DATASET}")
    go_online(hub, tmp_path / "home")
    down = train_here(*SHORT, run_dir=tmp_path / "down")
    assert "the hub does not answer" in down.stderr
    for said in (uploaded, refused, down):
        assert password not in said.stdout + said.stderr
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or password.encode() not in file.read_bytes(), file
