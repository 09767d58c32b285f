"""The Markdown pages of the repository: their commands, links and anchors, as GitHub shows them."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.support.running import REPOSITORY

PROGRAMS = "(?:accelerate|pip|sbatch|sst2|tensorboard)"  # that commands in tables begin with


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """A line each, in the order of the page, without comments: those of bash blocks, and of tables' second column."""
    found = []
    places = rf"^```bash\n(.*?)^```$|^\| [^|\n]+ \| `({PROGRAMS} [^`\n]+)` \|"
    for block, cell in re.findall(places, page, re.MULTILINE | re.DOTALL):
        text = re.sub(r"<< END\n.*?^END$", "", block, flags=re.MULTILINE | re.DOTALL) or cell
        lines = text.replace("\\\n", " ").splitlines()
        found += [" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines]
    return list(dict.fromkeys(filter(None, found)))


def words_of(command: str) -> list[str]:
    """Without the variables before it."""
    words = shlex.split(command)
    while re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    return words


def without_code(page: str) -> str:
    page = re.sub(r"^( *)```.*?^\1```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]+`", lambda code: "" if "](" in code[0] else code[0], page)


def links(page: str) -> list[str]:
    """The targets of links and images that lead into the repository, with their anchors."""
    return re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", without_code(page))


def anchors(page: str) -> Iterator[str]:
    """What GitHub makes of the headings, which for words, commas and hyphens MkDocs does as well."""
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} (.+)$", without_code(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        yield slug if slug not in seen else f"{slug}-{seen[slug]}"
        seen[slug] = seen.get(slug, 0) + 1


def leads_nowhere(link: str, page: Path) -> bool:
    """Whether a link of this page has no file, or its anchor no heading; within a notebook, anchors are Jupyter's."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(REPOSITORY.resolve()):
        return True
    text = markdown_of(target) if anchor else ""
    if target.suffix == ".ipynb":
        headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
        return bool(anchor) and anchor not in [heading.replace(" ", "-") for heading in headings]
    return bool(anchor) and anchor not in anchors(text)


def markdown_of(page: Path) -> str:
    """Its text; of a notebook, that of its Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
