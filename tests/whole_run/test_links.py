"""Every relative link and anchor of the pages leads somewhere, and every page can be reached."""

from pathlib import Path

import pytest

from tests.support.pages import leads_nowhere, links, markdown_of
from tests.support.running import REPOSITORY

DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
ROOT = sorted(REPOSITORY.glob("*.md"))
NOTEBOOK = REPOSITORY / "sst2_tutorial.ipynb"


@pytest.mark.parametrize("page", [*ROOT, *DOCS, NOTEBOOK], ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    missing = [link for link in links(markdown_of(page)) if leads_nowhere(link, page)]
    assert not missing


def test_the_landing_page_leads_to_every_other() -> None:
    index = REPOSITORY / "docs" / "index.md"
    linked = {link.partition("#")[0] for link in links(markdown_of(index))}
    assert {page.name for page in DOCS} - {"index.md"} <= linked


def test_a_link_to_nothing_is_seen(tmp_path: Path) -> None:
    readme = REPOSITORY / "README.md"
    assert leads_nowhere("docs/nothing.md", readme)
    assert leads_nowhere("docs/index.md#nothing", readme)
    assert leads_nowhere("#nothing", readme)
    assert leads_nowhere(str(tmp_path), readme)  # outside the repository, as on the writer's machine alone
