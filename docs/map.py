"""Draws the map in docs/architecture.md from the package itself: which room imports which, and what lies in each.

python docs/map.py        # writes it; a test compares what is there
"""

import ast
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- map: python docs/map.py -->", "<!-- end of map -->"
NO_ROOM = "__init__"


def rooms() -> list[Path]:
    """The packages below sst2."""
    return sorted(path.parent for path in (ROOT / "src" / "sst2").glob("*/__init__.py"))


def picture() -> str:
    """The imports between rooms as a Mermaid graph, without those that follow from two others."""
    graph = grimp.build_graph("sst2")
    names = [room.name for room in rooms()]
    imports = {
        name: {
            other
            for other in names
            if other != name
            and graph.direct_import_exists(importer=f"sst2.{name}", imported=f"sst2.{other}", as_packages=True)
        }
        for name in names
    }

    def reached(name: str) -> set[str]:
        return imports[name].union(*map(reached, imports[name]))

    lines = ["```mermaid", "graph TD"]
    for name in names:
        indirect = set().union(*map(reached, imports[name]))
        lines += [f"    {name} --> {other}" for other in sorted(imports[name] - indirect)]
    return "\n".join([*lines, "```"])


def contents() -> str:
    """Each room with its paragraph, and each of its modules with the first sentence of its docstring."""
    lines = []
    for room in rooms():
        lines += [f"### `{room.name}/`", "", docstring(room / "__init__.py"), ""]
        for file in sorted(room.rglob("*.py")):
            if file.stem != NO_ROOM or file.parent != room:
                name = file.relative_to(room)
                lines.append(f"- `{name.parent if file.stem == NO_ROOM else name}`: {first_line(file)}")
        lines.append("")
    return "\n".join(lines).rstrip()


def first_line(file: Path) -> str:
    """First line of a module's docstring."""
    return docstring(file).splitlines()[0]


def docstring(file: Path) -> str:
    """A module's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert text, f"{file} has no docstring"
    return text


def page() -> str:
    """docs/architecture.md with the map as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{picture()}\n\n{contents()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
