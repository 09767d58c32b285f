"""Reads the tutorial, and executes it in a clean kernel: for the tests, and to store anew what its cells put out.

    python -m tests.support.tutorial     # what `make notebook` does, after a change of the notebook or of what it shows

Of two executions on one machine, only the speeds and times that they print differ.
"""

import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "sst2_tutorial.ipynb"


def read() -> nbformat.NotebookNode:
    notebook: nbformat.NotebookNode = nbformat.read(NOTEBOOK, as_version=4)
    return notebook


def printed(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    """What a cell has written to stdout and stderr."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def printed_or_described(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    """What a cell has printed, then its pictures in words."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    pictures = [output.data["text/plain"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return printed(notebook, cell_id) + "\n".join(pictures)


def source(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    """Code or text of a cell."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    return str(cell.source)


def prose(notebook: nbformat.NotebookNode) -> str:
    """All cells of text, one after the other."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def execute(notebook: nbformat.NotebookNode, folder: Path, **variables: str) -> nbformat.NotebookNode:
    """Run all cells, from the first to the last, in a kernel that is started for them.

    Args:
        notebook: gets the outputs.
        folder: what the kernel works in.
        variables: of its environment, beside those of this process.

    Returns:
        The notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,  # which would be other in each execution
        coalesce_streams=True,  # in how many pieces a text comes is chance
    )
    client.execute(env=os.environ | variables)
    return notebook


def without_time_and_host(text: str) -> str:
    """What a cell has printed, without the dates of log lines, and without what TensorBoard's files are called here."""
    return re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d |(?<=events\.out\.tfevents)\.\S+", "", text)


def main() -> None:
    notebook = execute(read(), NOTEBOOK.parent)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = without_time_and_host(output.text)
    # the rest is of the Python that happened to be here
    notebook.metadata.language_info = {"name": "python"}
    unfinished = NOTEBOOK.with_name(f".{NOTEBOOK.name}.unfinished")
    nbformat.write(notebook, unfinished)
    os.replace(unfinished, NOTEBOOK)


if __name__ == "__main__":
    main()
