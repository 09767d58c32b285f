"""The map in docs/architecture.md is that of the package."""

import runpy

from tests.support.running import REPOSITORY


def test_the_map_is_drawn_from_the_package() -> None:
    drawn = runpy.run_path(str(REPOSITORY / "docs" / "map.py"))
    assert drawn["PAGE"].read_text(encoding="utf-8") == drawn["page"](), "run python docs/map.py"


def test_few_files_lie_in_each_room_and_none_at_the_root() -> None:
    package = REPOSITORY / "src" / "sst2"
    assert {file.name for file in package.glob("*.py")} == {"__init__.py", "__main__.py"}
    for room in package.glob("*/__init__.py"):
        assert len([*room.parent.glob("*.py")]) <= 13  # 12, and __init__.py
