"""The documentation as a site: `make docs` has Sphinx build it from these pages, and any warning is an error.

The pages are written for GitHub: a link out of docs/ becomes one to the repository, whose address pyproject.toml names
as `Repository` in [project.urls]; as long as it names none, the path stands there in its place.
"""

import re
from pathlib import Path

import tomllib
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

DOCS = Path(__file__).resolve().parent
PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT.get("urls", {}).get("Repository")
FIRST = "index"
PAGES = {  # beside the first one, by what they are for
    "Use": "your_data outputs resuming predict export compare sweep results",
    "Scale": "processes clusters dry_run performance troubleshooting comparison",
    "Look up": "reference architecture how_to_add releasing",
}
LINK_OUT = re.compile(r"\[([^\[\]]*)\]\(\.\./([^()\s#]+)(#[^()\s]*)?\)")

project = PROJECT["name"]
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
root_doc = FIRST
exclude_patterns = ["*.py"]
myst_heading_anchors = 4  # the anchors that GitHub gives headings
myst_fence_as_directive = ["mermaid"]
html_theme = "furo"
html_title = project
html_show_copyright = False
html_copy_source = False
html_use_index = False
suppress_warnings = ["misc.highlighting_failure"]  # GitHub knows languages that Pygments does not, as csv

logger = getLogger(__name__)


def read_page(_: Sphinx, name: str, source: list[str]) -> None:
    """Called with each page's text before it is parsed: links out of docs/, and on the first page the list of all."""

    def link(match: re.Match[str]) -> str:
        text, path, anchor = match.groups()
        if not (DOCS.parent / path).exists():
            logger.warning("%s links to ../%s, which does not exist", name, path)
        if REPOSITORY:
            return f"[{text}]({REPOSITORY.rstrip('/')}/blob/HEAD/{path}{anchor or ''})"
        return text if path in text.replace("`", "") else f"{text} (`{path}`)"

    source[0] = LINK_OUT.sub(link, source[0])
    if name == FIRST:
        for title, pages in PAGES.items():
            lines = [f"```{{toctree}}\n:hidden:\n:caption: {title}\n", *pages.split(), "```"]
            source[0] += "\n" + "\n".join(lines) + "\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_page)
