"""The tutorial's text: what it says of sources, files, flags, calculations and stored runs is so."""

import ast
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
    assert len(quotients) == 14
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


def test_integrated_gradients_on_paper_add_up(stored: NotebookNode) -> None:
    """Of x1^2 + 3 x2, from (0, 0) to (2, 1): each difference times the mean slope on the way."""
    way = (np.arange(1000) + 0.5) / 1000
    first, second = 2 * (2 * 2 * way).mean(), 1 * np.full(1000, 3.0).mean()
    assert (round(first, 9), round(second, 9), round(first + second, 9)) == (4, 3, 2**2 + 3 * 1)
    text = " ".join(source(stored, "by-length-after").split())
    assert "$f(x_1, x_2) = x_1^2 + 3 x_2$, and go from $x' = (0, 0)$ to $x = (2, 1)$" in text
    for result in (r"$a_1 = 2 \cdot 2 = 4$", r"$a_2 = 1 \cdot 3 = 3$", "$7 = f(2, 1) - f(0, 0)$"):
        assert result in text, result


def test_its_map_of_the_loop_is_that_of_the_script(stored: NotebookNode) -> None:
    script = ast.parse((REPOSITORY / "train_sst2.py").read_text(encoding="utf-8"))
    functions = {node.name: ast.unparse(node) for node in script.body if isinstance(node, ast.FunctionDef)}
    _, _, *rows = (line.strip("| ").split(" | ") for line in source(stored, "one-step").splitlines() if line[:1] == "|")
    assert sorted(int(line) for lines, *_ in rows for line in lines.split(", ")) == [*range(4, 12)]
    for _, _, calls, names in rows:
        for call, name in zip(re.findall(r"`(.+?)`", calls), re.findall(r"`(.+?)`", names), strict=True):
            assert re.search(rf"\b{re.escape(call)}\(", functions[name]), (call, name)


def test_what_it_says_of_the_stored_training_is_in_its_outputs(stored: NotebookNode) -> None:
    text = " ".join(source(stored, "count-tokens-after").split())
    batch = printed_or_described(stored, "first-batch")
    longest, padded, packed = re.findall(r"rows of (\d+),.* (\d+) in all.* (\d+) positions\.", batch)[0]
    (mean,) = re.findall(r"longest of a batch, (\d\.\d\d)", printed_or_described(stored, "count-tokens"))
    (most,) = re.findall(r"training .* and (\d+) at most, v", printed_or_described(stored, "lengths"))
    assert f"needed {padded} / {packed} = " in text
    assert (
        f"with {longest} in its longest sentence. The mean is higher, {mean}, since one sentence of up to {most} "
        in text
    )

    _, count, negatives, *_ = printed(stored, "load-data").splitlines()[-1].split()
    assert f"right for {negatives} of {count}: " in " ".join(source(stored, "before-after").split())
    assert f"accuracy {int(negatives) / int(count):.4f} " in printed(stored, "before-code")
    assert " f1 0.0000," in printed(stored, "before-code")  # it finds no positive one

    log = printed(stored, "fit-code")
    trained = {step: float(loss) for step, loss in re.findall(r"step (\d+)/.* loss (\S+),.*,", log)}
    validated = re.findall(r"step (\d+): accuracy (\S+) .* loss (\S+) on", log)
    steps, accuracies, losses = zip(
        *((step, float(right), float(loss)) for step, right, loss in validated), strict=True
    )
    turn = losses.index(min(losses))
    text = " ".join(source(stored, "curves-after").split())
    assert f"after step {steps[turn]}. There the validation loss is {losses[turn]:.3f}; from then on it is" in text
    assert f"below {min(losses[turn + 1 :]):.3f}, while the training loss falls" in text
    assert f"falls from {trained[steps[turn]]:.3f} to {trained[steps[-1]]:.3f}." in text
    assert f"{accuracies[turn]:.3f} at step {steps[turn]}, {accuracies[-1]:.3f} at the end" in text


def test_what_it_says_of_the_stored_mistakes_is_in_its_outputs(stored: NotebookNode) -> None:
    text = " ".join(source(stored, "by-length-after").split())
    bars = dict(re.findall(r"([^:;]+), (\d\.\d\d of \d+)", printed_or_described(stored, "by-length")))
    share = {name.strip(): value.split()[0] for name, value in bars.items()}
    table = printed(stored, "by-length")
    right = {name: (int(n), int(of)) for name, n, of in re.findall(r"(?m)^(.+?) +(\d+) of +(\d+) right$", table)}
    kinds = [right[name] for name in ("contrast and unseen word", "contrast alone", "unseen word alone", "neither")]
    both, _, unseen, _ = kinds
    mistakes = sum(of - n for n, of in kinds)
    assert printed(stored, "mistakes").startswith(f"{mistakes} of {sum(of for _, of in kinds)} sentences")
    with_unseen = sum(of - n for n, of in (both, unseen))
    for said in (
        f"{with_unseen} of the {mistakes} mistakes are among the {both[1] + unseen[1]} sentences with an unseen word "
        f"(accuracy {share['unseen word']}, against {share['all seen']} for the others)",
        f"Contrasts are harder, too ({share['contrast']} against {share['no contrast']})",
        f"where both meet: {both[0]} of {both[1]} are right",
        f"no difference ({share['negation']} and {share['no negation']})",
        "of which {} of {} are right".format(*right["17-32 tokens, contrast"]),
        "against {} of the {} others".format(*right["17-32 tokens, no contrast"]),
    ):
        assert said in text, said

    the_dull_plot = re.findall(r"the plot is dull, says NEGATIVE: (.*?);", printed_or_described(stored, "explain"))[0]
    pushes = {word: float(value) for word, value in (part.split() for part in the_dull_plot.split(", "))}
    assert sorted(pushes, key=lambda word: -abs(pushes[word]))[:2] == ["dull", "the"]
    said = " ".join(source(stored, "explain-after").split()).replace("\u2212", "-")
    assert f"bar of the first sentence: *the*, at {pushes['the']}." in said

    tried = re.findall(r"(\w+) (\S+)  (.+)  \(unseen: (.+)\)", printed(stored, "replace-words"))
    assert [answer for answer, *_ in tried] == 3 * ["NEGATIVE"] + ["POSITIVE"] + 2 * ["NEGATIVE"]
    assert [unseen == "none" for *_, unseen in tried] == 3 * [False] + [True, False, True]
    said = " ".join(source(stored, "replace-words-after").split())
    assert f"with {tried[5][1]} instead of {tried[4][1]}" in said
    for sentence in (tried[0][2], tried[4][2]):  # the two most confident mistakes
        assert sentence in "\n".join(printed(stored, "mistakes").splitlines()[2:4])


def test_what_it_says_of_where_the_stored_model_looks_is_in_its_outputs(stored: NotebookNode) -> None:
    looks = re.findall(r"head (\d): (\S+) .*", printed(stored, "attention-after"))
    negation, contrast = looks[:4], looks[4:]
    assert negation == [("1", "boring"), ("2", "not"), ("3", "not"), ("4", "'")]
    assert contrast == [("1", "clumsy"), ("2", "but"), ("3", "clumsy"), ("4", "the")]
    at_gripping = re.findall(r"gripping (\d\.\d\d)", printed(stored, "attention-after"))
    said = " ".join(source(stored, "attention-count").split())
    assert f"with {max(at_gripping)} at most" in said
    assert (
        "looks at *boring* in attention head 1, and at *not* in 2 and 3. In 4 it looks most at the apostrophe" in said
    )
    assert "looks at *clumsy* in attention heads 1 and 3, at *but* in 2 and at *the* in 4" in said
    answer = re.findall(r"(\w+)  (\S+)  the story is clumsy , but", printed(stored, "pipeline"))
    assert f"The model says {answer[0][0]}, with {answer[0][1]} (section 14)" in said


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
        "{:.3f} of those with 9 to 16 tokens are right, {:.3f} with 17 to 32, {:.3f} from 33 on.".format(
            *(by_length[tokens]["accuracy"] for tokens in ("9-16", "17-32", "33-64"))
        ),
        f"The {by_length['1-8']['count']} that are shorter still",
        f"mean accuracy {baseline['holdout_accuracy']['mean']:.3f}, "
        f"against {baseline['validation_accuracy']['mean']:.3f} on the validation sentences",
    ):
        assert figure in text, figure
    intervals = re.findall(r"MiniLM.* (0\.\d{3}) to (0\.\d{3})", printed(stored, "real-code"))
    assert len(intervals) == 7
    low, high = max(low for low, _ in intervals), min(high for _, high in intervals)
    assert f"each contains every accuracy from {low} to {high}, so" in text
    assert low < high
    means = re.findall(r"  (0\.\d{3}) on ", printed(stored, "real-code"))
    assert means == [f"{baseline[name]['mean']:.3f}" for name in ("holdout_accuracy", "validation_accuracy")]
    shown = " ".join(printed(stored, "real-code").split())
    for result in (one_epoch, on_gpu, recipes):  # with what made them
        assert " ".join(result["command"].split()) in shown
        assert (result.get("machine") or result["conditions"]["machine"]) in shown
