"""The tutorial: what is stored is one clean run of it, and it runs from a clean kernel with the repository's code."""

import csv
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbformat import NotebookNode
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support import tutorial
from tests.support.hub_server import HubServer
from tests.support.running import REPOSITORY

# Put out before anything is trained, and the same on every machine.
SAME_EVERYWHERE = (
    "settings",
    "load-data",
    "show-data",
    "wordpiece",
    "special-tokens-code",
    "sizes",
    "three-words",
    "three-words-torch",
    "ten-sentences",
    "real-code",
)
HIDDEN_SOURCE = {"cellView": "form", "jupyter": {"source_hidden": True}}  # of Colab, and of JupyterLab
REFERENCES = {
    "Ba": "arxiv.org/abs/1607.06450",
    "Clark": "arxiv.org/abs/1906.04341",
    "Devlin": "arxiv.org/abs/1810.04805",
    "Fawcett": "doi.org/10.1016/j.patrec.2005.10.010",
    "Guo": "arxiv.org/abs/1706.04599",
    "He": "arxiv.org/abs/1512.03385",
    "Hinton": "arxiv.org/abs/1503.02531",
    "Jain": "arxiv.org/abs/1902.10186",
    "Loshchilov": "arxiv.org/abs/1711.05101",
    "Sanh": "arxiv.org/abs/1910.01108",
    "Socher": "nlp.stanford.edu/sentiment",
    "Sundararajan": "arxiv.org/abs/1703.01365",
    "Vaswani": "arxiv.org/abs/1706.03762",
    "Wang": "arxiv.org/abs/1804.07461",
    "Wilson": "doi.org/10.1080/01621459.1927.10502953",
    "Wu": "arxiv.org/abs/1609.08144",
    "transformers": "huggingface.co/docs/transformers",
    "accelerate": "huggingface.co/docs/accelerate",
}
FACTS = """
import sst2, train_sst2

print(json.dumps({
    "modules": [sst2.__file__, train_sst2.__file__],
    "sentence": negated[0],
    "by_hand": [weights.tolist() for weights in attention_of(trained, negated[0])[2]],
    "tables": [by_formula, by_sklearn],
}))
"""


@pytest.fixture(scope="module")
def stored() -> NotebookNode:
    return tutorial.read()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def printed(notebook: NotebookNode, cell_id: str) -> str:
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def figures(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def source(notebook: NotebookNode, cell_id: str) -> str:
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    return str(cell.source)


def solutions(notebook: NotebookNode) -> list[str]:
    """The code of each exercise's solution."""
    folded = re.findall(r"<details>(.*?)</details>", source(notebook, "exercises"), re.DOTALL)
    return ["\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for text in folded]


def prose(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_stored_outputs_are_those_of_one_clean_run(stored: NotebookNode) -> None:
    nbformat.validate(stored)
    cells = code_cells(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    # Neither errors nor warnings, nor widgets that need a running kernel: plain text, and pictures with their words.
    for output in outputs(stored):
        assert output.output_type in ("stream", "display_data"), output
        if output.output_type == "stream":
            assert output.name == "stdout", output.text
        else:
            assert set(output.data) in ({"image/png", "text/plain"}, {"text/html", "text/plain"})
    assert len(figures(stored)) == 15
    assert "final: accuracy" in printed(stored, "finish-code")
    assert tutorial.NOTEBOOK.stat().st_size < 1.5 * 2**20


def test_every_figure_has_alternative_text(stored: NotebookNode) -> None:
    descriptions = [figure.metadata["image/png"]["alt"] for figure in figures(stored)]
    assert [figure.data["text/plain"] for figure in figures(stored)] == descriptions  # for terminals and searches
    folded = [output.data["text/html"] for output in outputs(stored) if "text/html" in output.get("data", {})]
    words = [re.sub(r"<summary>.*?</summary>|</?details>", "", text) for text in folded]
    assert [html.unescape(text) for text in words] == descriptions
    assert len(set(descriptions)) == len(descriptions)
    assert min(map(len, descriptions)) > 80
    for cell in code_cells(stored):  # none is put out by matplotlib itself, without a description
        assert "plt.show" not in cell.source


def test_nothing_stored_tells_of_the_machine_or_the_hour(stored: NotebookNode) -> None:
    raw = tutorial.NOTEBOOK.read_text(encoding="utf-8")
    without_pictures = re.sub(r'"image/png": "[^"]*"', "", raw)
    assert not re.findall(r"/(?:home|root|Users|tmp|var|work|mnt|opt|usr|private)\b[^\s\"]*", without_pictures)
    assert not re.findall(r"\b20\d\d-\d\d-\d\d|\b\d\d:\d\d:\d\d\b|\bat 0x[0-9a-f]+", without_pictures)
    assert stored.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell.metadata in ({}, HIDDEN_SOURCE) for cell in stored.cells)


def test_it_is_stored_for_the_sample_and_one_line_switches(stored: NotebookNode) -> None:
    assigned = [cell.id for cell in code_cells(stored) if re.search(r"^REAL_DATA\s*=", cell.source, re.MULTILINE)]
    assert assigned == ["switch"]
    assert source(stored, "switch").startswith("REAL_DATA = False ")


def test_links_lead_somewhere(stored: NotebookNode) -> None:
    text = prose(stored)
    headings = {heading.replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 20
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("https://"):
            assert (REPOSITORY / link).is_file(), link


def test_sources_are_named(stored: NotebookNode) -> None:
    _, _, references = prose(stored).partition("## References")
    entries = references.split("\n* ")
    for name, address in REFERENCES.items():
        assert any(name in entry and address in entry for entry in entries), name
    text = prose(stored).partition("## References")[0]
    for cited in re.findall(r"([A-Z][a-z]+)(?: et al\.| and [A-Z][a-z]+)?(?:,| \()\s*(?:19|20)\d\d", text):
        assert cited in REFERENCES, cited


def test_its_flags_and_commands_exist(stored: NotebookNode) -> None:
    from sst2.config.settings import Settings

    sources = "\n".join(cell.source for cell in stored.cells)
    flags = set(re.findall(r"--([a-z_]+)", sources.replace(source(stored, "colab"), "")))  # that one calls git and pip
    known = {*Settings.__dataclass_fields__, "help", "logdir", "config_file", "explain", "html"}
    assert flags <= known, flags - known
    for module in re.findall(r"python -m sst2\.(\w+)", sources):
        assert (REPOSITORY / "src" / "sst2" / "cli" / f"{module}.py").is_file()
    for config in re.findall(r"accelerate_configs/\w+\.yaml", sources):
        assert (REPOSITORY / config).is_file()


def test_attention_on_paper_is_right(stored: NotebookNode) -> None:
    x, w_q, w_v = np.array([[1, 0], [0, 1], [1, 1]]), np.array([[0, 1], [2, -1]]), np.array([[-2, 0], [1, 1]])
    exponentials = np.exp(x @ w_q @ x.T / np.sqrt(2))  # W_K is the identity
    weights = exponentials / exponentials.sum(axis=1, keepdims=True)
    results = weights @ x @ w_v
    dull, film = source(stored, "attention"), source(stored, "exercises")
    for number in (*exponentials[1], exponentials[1].sum()):
        assert f"{number:.3f}" in dull
    assert re.findall(r"\*\*(0\.\d{3})\*\*", dull) == [f"{weight:.3f}" for weight in weights[1]]
    assert rf"({results[1][0]:.3f},\ {results[1][1]:.3f})" in dull
    assert f"({results[2][0]:.3f}, {results[2][1]:.3f})" in film
    assert weights[2] == pytest.approx([0.446, 0.108, 0.446], abs=6e-4)


def test_what_it_says_of_stored_results_is_in_their_files(stored: NotebookNode) -> None:
    folder = REPOSITORY / "benchmarks" / "results"
    names = ("sst2_minilm_one_epoch.json", "gpu_runs.json", "recipes_whole_epoch.json")
    one_epoch, on_gpu, recipes = (json.loads((folder / name).read_text()) for name in names)
    text = " ".join(source(stored, "real-after").split())
    seeds = [run["accuracy"] for name, run in on_gpu["runs"].items() if name.startswith("minilm")]
    (random,) = (run["accuracy"] for name, run in on_gpu["runs"].items() if "random weights" in name)
    by_length = one_epoch["runs"][0]["accuracy_by_length"]
    baseline = recipes["recipes"]["baseline"]["summary"]
    for figure in (
        f"SST-2 alone teaches it {random:.3f}",
        f"lie {100 * (max(seeds) - min(seeds)):.1f} points apart",
        f"{by_length['1-8']['accuracy']:.3f} up to 8 tokens, {by_length['33-64']['accuracy']:.3f} from 33 on",
        f"mean accuracy {baseline['holdout_accuracy']['mean']:.3f}, "
        f"against {baseline['validation_accuracy']['mean']:.3f} on the validation sentences",
    ):
        assert figure in text, figure
    shown = " ".join(printed(stored, "real-code").split())
    for result in (one_epoch, on_gpu, recipes):  # with what made them
        assert " ".join(result["command"].split()) in shown
        assert (result.get("machine") or result["conditions"]["machine"]) in shown


@pytest.mark.slow
def test_colab_gets_code_and_results_from_the_repository(tmp_path: Path, stored: NotebookNode) -> None:
    subprocess.run(["git", "init", "--quiet", "origin"], cwd=tmp_path, check=True)
    files = ["pyproject.toml", "README.md", "LICENSE", "train_sst2.py", "src", "benchmarks/results"]
    subprocess.run(["cp", "--recursive", "--parents", *files, tmp_path / "origin"], cwd=REPOSITORY, check=True)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", "origin"]
    subprocess.run([*git, "add", "."], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "all"], cwd=tmp_path, check=True)
    is_colab = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')"
    cell = source(stored, "colab")
    # what the project needs, and what builds it, is there already; to pip, "false" is how this variable switches it off
    variables = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "false", "PIP_TARGET": str(tmp_path / "installed")}

    def python(code: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | variables
        command = [sys.executable, "-c", f"{is_colab}\n{code}"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    unset = python(cell)
    assert unset.returncode == 1
    assert unset.stderr.startswith("set REPOSITORY above")
    assert not (tmp_path / "sst2-tutorial").exists()
    cell = cell.replace('REPOSITORY = ""', f'REPOSITORY = "file://{tmp_path}/origin"')
    found = python(f"{cell}\nimport importlib.util\nprint(importlib.util.find_spec('train_sst2').origin)")
    assert found.returncode == 0, found.stderr
    script = Path(tmp_path / found.stdout.strip()).resolve()
    assert script == (tmp_path / "sst2-tutorial" / "train_sst2.py").resolve()
    assert (script.parent / "benchmarks" / "results" / "gpu_runs.json").is_file()  # where section 12 looks
    assert (tmp_path / "installed" / "sst2").is_dir()


def run_in(folder: Path, notebook: NotebookNode, **variables: str) -> NotebookNode:
    """Execute the notebook as a reader does who stands in the repository, but with its results in another folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / ".jupyter"))
        patch.setenv("IPYTHONDIR", str(folder / ".ipython"))
        code = f"{REPOSITORY / 'src'}:{REPOSITORY}"
        return tutorial.execute(notebook, folder, PYTHONPATH=code, **variables)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[NotebookNode, Path]:
    """The tutorial, just executed where there is no network, and where it ran.

    `FACTS` and the exercises' solutions, which assert on what they say, are its last cells.
    """
    folder = tmp_path_factory.mktemp("tutorial")
    notebook = tutorial.read()
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS, id="facts"))
    for number, code in enumerate(solutions(notebook), start=1):
        notebook.cells.append(nbformat.v4.new_code_cell(code, id=f"solution-{number}"))
    variables = {"HF_HOME": str(folder / ".hf"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    return run_in(folder, notebook, **variables), folder


@pytest.mark.slow
def test_a_clean_kernel_runs_it_with_the_code_of_the_repository(
    executed: tuple[NotebookNode, Path], stored: NotebookNode
) -> None:
    notebook, folder = executed
    facts = json.loads(printed(notebook, "facts"))
    assert [Path(file).resolve() for file in facts["modules"]] == [
        REPOSITORY / "src" / "sst2" / "__init__.py",
        REPOSITORY / "train_sst2.py",
    ]
    streams = {output.name for output in outputs(notebook) if output.output_type == "stream"}
    assert streams == {"stdout"}  # no warnings
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {"runs"}
    for cell_id in SAME_EVERYWHERE:  # else the stored outputs are of an earlier state of the repository
        assert printed(notebook, cell_id) == printed(stored, cell_id), cell_id


@pytest.mark.slow
def test_attention_by_hand_is_the_models_own(executed: tuple[NotebookNode, Path]) -> None:
    notebook, folder = executed
    facts = json.loads(printed(notebook, "facts"))
    exported = folder / "runs" / "tutorial-sample" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(exported, attn_implementation="eager").eval()
    inputs = AutoTokenizer.from_pretrained(exported)(facts["sentence"], return_tensors="pt")
    with torch.no_grad():
        own = model(input_ids=inputs.input_ids, output_attentions=True).attentions
    assert len(own) == len(facts["by_hand"]) == model.config.num_hidden_layers
    for weights, by_hand in zip(own, facts["by_hand"], strict=True):
        torch.testing.assert_close(torch.tensor(by_hand), weights[0], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_each_exercise_has_a_solution_that_runs(executed: tuple[NotebookNode, Path], stored: NotebookNode) -> None:
    notebook, _ = executed
    text = source(stored, "exercises")
    exercises = re.findall(r"^\*\*(\d)\. ", text, re.MULTILINE)
    assert exercises == re.findall(r"<summary>Solution (\d)</summary>", text) == ["1", "2", "3", "4", "5"]
    assert all("assert" in code for code in solutions(stored))
    for number in exercises[:1] + exercises[2:]:
        assert printed(notebook, f"solution-{number}")


@pytest.mark.slow
def test_its_table_of_metrics_is_that_of_scikit_learn(executed: tuple[NotebookNode, Path]) -> None:
    notebook, folder = executed
    run = folder / "runs" / "tutorial-sample"
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    truth, answers = (np.array([row[column] == "POSITIVE" for row in rows]) for column in ("label", "prediction"))
    precision, recall, f1, _ = precision_recall_fscore_support(truth, answers, average="binary")
    expected = {"accuracy": accuracy_score(truth, answers), "precision": precision, "recall": recall, "f1": f1}
    for table in json.loads(printed(notebook, "facts"))["tables"]:
        assert table == pytest.approx(expected, abs=1e-12)
    lines = [line.split() for line in printed(notebook, "three-ways").splitlines()[1:]]
    assert lines == [[name, *3 * [f"{value:.4f}"]] for name, value in expected.items()]
    written: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    assert {name: written[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert 0.85 < written["accuracy"] < 1.0  # it learns, as the job alone does


@pytest.mark.slow
def test_the_switch_takes_model_and_data_from_the_hub(hub_root: Path, tmp_path: Path) -> None:
    notebook = tutorial.read()
    (switch,) = (cell for cell in notebook.cells if cell.id == "switch")
    switch.source = "REAL_DATA = True"
    with HubServer(hub_root) as hub:
        run_in(tmp_path, notebook, HF_HOME=str(tmp_path / ".hf"), HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url)
        read = "\n".join(hub.requests)
    assert "/distilbert/distilbert-base-uncased/resolve/" in read
    assert "/nyu-mll/glue/resolve/" in read
    metrics = json.loads((tmp_path / "runs" / "tutorial-sst2" / "metrics.json").read_text())
    assert (metrics["count"], metrics["split"]) == (40, "validation")
