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

from sst2.evaluation.predictions import final_in_words
from sst2.evaluation.significance import wilson_interval
from tests.support import tutorial
from tests.support.hub_server import HubServer
from tests.support.running import REPOSITORY
from tests.support.tutorial import printed, printed_or_described, source

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


def figures(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def solutions(notebook: NotebookNode) -> list[str]:
    """The code of each exercise's solution."""
    folded = re.findall(r"<details>(.*?)</details>", source(notebook, "exercises"), re.DOTALL)
    return ["\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for text in folded]


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
    assert tutorial.NOTEBOOK.stat().st_size < 1.5 * 2**20


def test_the_stored_end_of_the_run_is_what_the_code_logs(stored: NotebookNode) -> None:
    true_negatives, false_positives, false_negatives, true_positives = map(
        int, re.findall(r"(\d+) (?:true|false) ", printed_or_described(stored, "confusion"))
    )
    right = true_negatives + true_positives
    metrics = {
        "accuracy": right / (count := right + false_positives + false_negatives),
        "accuracy_ci95": wilson_interval(right, count),
        "f1": 2 * true_positives / (2 * true_positives + false_positives + false_negatives),
        "count": count,
        "split": "validation",
        "step": int(re.findall(r"max_train_steps +(\d+)", printed(stored, "setup"))[0]),
        "seconds": 0.0,
    }
    end = re.sub(r"(?<=steps took )\d+:\d\d:\d\d\n", "0:00:00\n", printed(stored, "finish-code"))
    assert f"\nfinal: {final_in_words(metrics)}\n" in end


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
    path = "sys.path.count(str(checkout / 'src')), importlib.util.find_spec('train_sst2').origin"
    found = python(f"{cell}\n{cell}\nimport importlib.util\nprint(*({path}))")  # as somebody who runs it twice
    assert found.returncode == 0, found.stderr
    times, _, origin = found.stdout.strip().partition(" ")
    assert times == "1"
    assert Path(origin).is_absolute()
    script = Path(origin).resolve()
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
    metrics = json.loads((folder / "runs" / "tutorial-sample" / "metrics.json").read_text())
    assert f"final: {final_in_words(metrics)}\n" in printed(notebook, "finish-code")
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
    for number in exercises:
        assert printed(notebook, f"solution-{number}")
    if printed(notebook, "sure-code") == printed(stored, "sure-code"):  # else this machine's run is not the stored one
        said = " ".join(text.split())
        (_, before), (best, after) = re.findall(r"T = (\S+): .* ece (\S+)", printed(notebook, "solution-4"))
        assert f"$T$ is {best}; the ECE falls from {float(before):.3f} to {float(after):.3f}." in said
        lost = dict(re.findall(r"(\w+) .* loses (\d+ to \d+) points", printed(notebook, "solution-5")))
        assert f"stored run {lost['contrast']} and {lost['negation']} points in five shuffles, " in said
        assert f"against {lost['neither']} for the sentences with neither" in said


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
