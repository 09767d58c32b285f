"""The tutorial's text: what it says of sources, files, flags, calculations and stored runs is so."""

import json
import re

import numpy as np
import pytest
from nbformat import NotebookNode

from tests.support import tutorial
from tests.support.running import REPOSITORY
from tests.support.tutorial import printed, printed_or_described, prose, source

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


@pytest.fixture(scope="module")
def stored() -> NotebookNode:
    return tutorial.read()


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
    commands = set(re.findall(r"(?m)(?:^|`|run )sst2 (\w+)", sources))
    assert commands == {"compare", "predict"}
    for command in commands:
        assert (REPOSITORY / "src" / "sst2" / "cli" / f"{command}.py").is_file()
    for config in re.findall(r"accelerate_configs/\w+\.yaml", sources):
        assert (REPOSITORY / config).is_file()


def on_paper(value: float) -> float:
    """Rounded to the three digits that somebody with a pencil goes on with."""
    return round(float(value), 3)


def test_attention_on_paper_is_what_a_pencil_gets(stored: NotebookNode) -> None:
    x, w_q, w_v = np.array([[1, 0], [0, 1], [1, 1]]), np.array([[0, 1], [2, -1]]), np.array([[-2, 0], [1, 1]])
    scores = x @ w_q @ x.T / np.sqrt(2)  # W_K is the identity
    exact = (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)) @ x @ w_v
    for text, row, ends_at in (("attention", 1, "ends at $-1.471$"), ("exercises", 2, "ends at $-1.229$")):
        shown = source(stored, text).replace("\u2212", "-")
        exponentials = [on_paper(np.exp(round(score, 4))) for score in scores[row]]
        total = on_paper(sum(exponentials))
        weights = [on_paper(one / total) for one in exponentials]
        first, second = (on_paper(sum(weights * (x @ w_v)[:, column])) for column in (0, 1))
        for number in (*(f"{score:.4f}" for score in scores[row] if score), *(f"{one:g}" for one in exponentials)):
            assert number in shown, number
        assert f"{total:.3f}" in shown
        steps = " + ".join(rf"{w:.3f} \cdot ({v[0]}, {v[1]})" for w, v in zip(weights, x @ w_v, strict=True))
        result = f"({first:.3f}, {second:.3f})"
        assert f"{steps} = {result}" in shown.replace(r",\ ", ", ")
        assert ends_at == f"ends at ${exact[row][0]:.3f}$"  # where nothing is rounded on the way
        assert ends_at in " ".join(shown.split())
    bold = re.findall(r"\*\*(0\.\d{3})\*\*", source(stored, "attention"))
    assert bold == ["0.620", "0.074", "0.306"]


def test_other_calculations_on_paper_are_right(stored: NotebookNode) -> None:
    text = prose(stored).replace("*", "")
    quotients = re.findall(r"(\d[\d.]*) / (\d[\d.]*) = (\d\.\d+)", text)
    assert len(quotients) == 12
    for above, below, result in quotients:
        digits = len(result.partition(".")[2])
        assert f"{float(above) / float(below):.{digits}f}" == result, f"{above} / {below}"
    for precision, recall, f1 in ((0.8, 0.667, "1.067 / 1.467"), (0.714, 0.833, "1.190 / 1.547")):  # from rounded ones
        assert f"{2 * precision * recall:.3f} / {precision + recall:.3f}" == f1
        assert f1 in text
    exercise = r"2 \cdot 0.714 \cdot 0.833 / (0.714 + 0.833)"
    assert exercise in text
    assert f"\\log 2 \\approx {np.log(2):.3f}" in text
    assert f"one sentence is {100 / 872:.3f} points" in " ".join(text.split())


def test_what_it_says_of_the_stored_run_is_in_its_outputs(stored: NotebookNode) -> None:
    (sure,) = re.findall(r"highest confidence has (\d+ of \d+) sentences", printed_or_described(stored, "sure-code"))
    assert f"In the stored run, {sure} answers lie in the group on the far right" in source(stored, "sure-after")
    table = {line.split()[0]: line.split()[1:] for line in printed(stored, "attention-count-code").splitlines()[2:]}
    count, before, after = table.pop("all")
    said = " ".join(source(stored, "attention-warning").split())
    shares = f"{before} times an equal share before training, and {after} times after it"
    assert f"the {count} negations get {shares}" in said
    above_mean = [word for word, (_, _, times) in table.items() if float(times) > float(after)]
    assert above_mean == ["not", "never", "hardly"]
    assert f"*not*, *never* and *hardly*, {sum(int(table[word][0]) for word in above_mean)} of the {count}" in said
    assert float(table["nothing"][2]) < 1
    assert sum(int(number) for number, _, _ in table.values()) == int(count)
    seen = dict(re.findall(r"(\S+) (\d+)", printed(stored, "seen-words")))
    assert {seen[word] for word in ("even", "screenplay", "narrative")} == {"0"}


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
        f"SST-2 alone gets it to {random:.3f}",
        f"lie up to {100 * (max(seeds) - min(seeds)):.1f} points apart",
        f"{by_length['1-8']['accuracy']:.3f} up to 8 tokens, {by_length['33-64']['accuracy']:.3f} from 33 on",
        f"mean accuracy {baseline['holdout_accuracy']['mean']:.3f}, "
        f"against {baseline['validation_accuracy']['mean']:.3f} on the validation sentences",
    ):
        assert figure in text, figure
    intervals = re.findall(r"MiniLM.* (0\.\d{3}) to (0\.\d{3})", printed(stored, "real-code"))
    assert len(intervals) == 7
    low, high = max(low for low, _ in intervals), min(high for _, high in intervals)
    assert f"from {low} to {high} they agree" in text
    assert low < high
    shown = " ".join(printed(stored, "real-code").split())
    for result in (one_epoch, on_gpu, recipes):  # with what made them
        assert " ".join(result["command"].split()) in shown
        assert (result.get("machine") or result["conditions"]["machine"]) in shown
