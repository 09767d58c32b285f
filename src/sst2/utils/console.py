"""Standard output as commands print to it: whatever the terminal can show, and as long as anybody reads.

Nothing heavy is imported here: signals must be caught before the seconds that importing torch takes.
"""

import io
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from tqdm import tqdm

from sst2.utils.errors import UserError

_LOGGER = logging.getLogger("sst2.progress")
_T = TypeVar("_T")

EXIT_NO_READER = 141  # what a shell says of programs that SIGPIPE has ended
WIDTH = 1 << 20  # columns of a table's longest line
WIDTH_OF_FILES = 120  # columns of a table that is printed to a file or a pipe, unless COLUMNS says otherwise
LINE_EVERY = 30.0  # seconds between lines that say how far something has come, where there is no terminal
GAP = 2  # columns between those of a fitted table
SHORTEST = 9  # columns that words and names are left with where no other column can be left out


class Fit(NamedTuple):
    """How a column may be fitted to a terminal.

    Attributes:
        kind: `figure` is never cut; `text` is wrapped; a `name` is shortened in its middle, to one line.
        rank: the column of the highest rank is the first to be left out; one of rank 0 stays.
        least: columns that words and names keep as long as another column can be left out.
    """

    kind: Literal["figure", "text", "name"] = "figure"
    rank: int = 0
    least: int = 16


@contextmanager
def standard_output() -> Iterator[None]:
    r"""Around a command. Characters that the terminal's encoding lacks are spelled out: `\xb1`.

    Raises:
        UserError: standard output cannot be written.
        SystemExit: its reader has gone, as behind `| head`: the command ends without a word.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError as error:
        give_up(error)
    finally:
        flush()


def restrain_deepspeed() -> None:
    """Have DeepSpeed's logger write to standard error, and not complain of machines without a GPU; before its import.

    It writes to standard output, which is for what a command prints, and accelerate imports it where it is installed.
    """
    logger = logging.getLogger("DeepSpeed")

    def admit(record: logging.LogRecord) -> bool:  # which a logger asks before its handlers
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setStream(sys.stderr)
        return "Setting accelerator to CPU" not in record.getMessage()

    logger.addFilter(admit)


def say(text: str) -> None:
    """Print a line or several. Raises as `give_up`."""
    try:
        print(text)
    except OSError as error:
        give_up(error)


class Progress(tqdm):  # type: ignore[type-arg] # which is generic in its stubs alone
    """How far something has come, and the time that is left: a bar on a terminal, elsewhere a line every half minute.

    The lines are log lines of the project, so that they also stand in a run's log file, dated. What takes no half
    minute says nothing there.

    Args:
        iterable: what is gone through; `update` counts where there is none.
        desc: what is done.
        hidden: whether this process says nothing of it, as all ranks but one.
        options: of tqdm.
    """

    def __init__(
        self, iterable: Iterable[_T] | None = None, desc: str = "", hidden: bool = False, **options: Any
    ) -> None:
        self._in_lines = sys.stderr is None or not sys.stderr.isatty()
        if self._in_lines:  # tqdm's own output goes nowhere
            options |= {"file": io.StringIO(), "mininterval": LINE_EVERY, "maxinterval": math.inf, "miniters": 1}
            options["leave"] = False  # or its end would be a line, also that of what a mistake has ended
        super().__init__(iterable, desc=desc, disable=hidden, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or log a line: between the first and the last, which say nothing new."""
        if not self._in_lines:
            super().display(msg, pos)
        elif msg is None and self.n and self.n != self.total:
            _LOGGER.info("%s", self._line())

    def _line(self) -> str:
        unit = self.format_dict["unit"].strip()
        of = f"{self.n:,} {unit}"
        if not self.total:
            return f"{self.desc}: {of}"
        left = self.format_dict["elapsed"] * (self.total - self.n) / (self.n - self.initial or 1)
        of = f"{self.n:,} of {self.total:,} {unit} ({100 * self.n / self.total:.0f} %)"
        return f"{self.desc}: {of}, {timedelta(seconds=round(left))} left"


def table(rows: Iterable[Sequence[str]], markdown: bool = False) -> str:
    """Rows as columns of even width, the first row their names: never cut or wrapped, whatever they are printed to.

    Args:
        rows: of cells.
        markdown: whether there are bars between the columns, as in Markdown, or spaces.
    """
    from rich.box import MARKDOWN
    from rich.table import Table

    names, *lines = ([cell.replace("|", "\\|") if markdown else cell for cell in row] for row in rows)
    box, padding = (MARKDOWN, (0, 1)) if markdown else (None, (0, 2, 0, 0))
    drawn = Table(*names, box=box, padding=padding, pad_edge=markdown)
    for line in lines:
        drawn.add_row(*line)
    return _printed(drawn)


def _printed(drawn: Any) -> str:
    """A table of rich as plain text, without empty lines and spaces at the ends of lines."""
    from rich.console import Console

    text = io.StringIO()
    plain = Console(
        file=text, width=WIDTH, color_system=None, markup=False, emoji=False, force_terminal=False, force_jupyter=False
    )
    plain.print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def terminal_width() -> int:
    """Columns that a table may take: of COLUMNS or of the terminal, and of a file what most windows show."""
    return shutil.get_terminal_size((WIDTH_OF_FILES, 0)).columns


def fitted_table(rows: Sequence[Sequence[str]], fits: Sequence[Fit], width: int) -> tuple[str, list[str]]:
    """Rows as columns in a terminal of that width, the first row their names.

    Words and names get what figures leave. Where that is too little, columns are left out by their rank.

    Args:
        rows: of cells.
        fits: of each column.
        width: columns of the terminal.

    Returns:
        The table, and the names of the columns that it has no room for. Its lines are longer than the width only where
        the columns that must stay are.
    """
    kept, left_out = list(range(len(fits))), []
    while not (widths := _widths(rows, fits, kept, width)):
        goes = max(kept, key=lambda column: (fits[column].rank, column))
        if not fits[goes].rank:
            fits = [fit._replace(least=SHORTEST) for fit in fits]
            widths = _widths(rows, fits, kept, width) or _widths(rows, fits, kept, WIDTH)
            break
        kept.remove(goes)
        left_out.append(rows[0][goes])
    return _draw(rows, fits, dict(zip(kept, widths, strict=True))), left_out


def _widths(rows: Sequence[Sequence[str]], fits: Sequence[Fit], kept: list[int], width: int) -> list[int]:
    """A width for each column that is kept; none where they do not fit."""
    from rich.cells import cell_len

    needed, wanted = [], []
    for column in kept:
        cells = max((cell_len(row[column]) for row in rows[1:]), default=0)
        needed.append(max(map(cell_len, [*_words(rows[0][column]), ""])))
        needed[-1] = max(needed[-1], cells if fits[column].kind == "figure" else min(cells, fits[column].least))
        wanted.append(max(cells, cell_len(rows[0][column]), needed[-1]))
    spare = min(width, sum(wanted) + GAP * (len(kept) - 1)) - sum(needed) - GAP * (len(kept) - 1)
    if spare < 0:
        return []
    for _ in range(spare):  # to the narrowest that can use it
        narrowest = min((n for n in range(len(kept)) if needed[n] < wanted[n]), key=needed.__getitem__)
        needed[narrowest] += 1
    return needed


def _words(title: str) -> list[str]:
    """The parts between which the name of a column may be broken."""
    return re.findall(r"[^ _]+[ _]*", title)


def _draw(rows: Sequence[Sequence[str]], fits: Sequence[Fit], widths: dict[int, int]) -> str:
    from rich.cells import cell_len
    from rich.table import Table

    drawn = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for column, width in widths.items():
        lines = [""]
        for word in _words(rows[0][column]):
            lines += [""] * bool(lines[-1] and cell_len(lines[-1] + word.rstrip()) > width)
            lines[-1] += word
        title = "\n".join(line.rstrip() for line in lines)
        drawn.add_column(title, width=width, overflow="fold", no_wrap=fits[column].kind != "text")
    drawn.add_row(*("-" * width for width in widths.values()))
    for row in rows[1:]:
        cells = []
        for column, width in widths.items():
            longest = {"figure": WIDTH, "name": width, "text": 2 * width}[fits[column].kind]
            words = [row[column]] if fits[column].kind == "name" else row[column].split(" ")
            cells.append(" ".join(shortened_middle(word, longest) for word in words))
        drawn.add_row(*cells)
    return _printed(drawn)


def shortened_middle(text: str, width: int) -> str:
    """The text in so many columns at most. More of its end is kept: there, names of runs and paths differ."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    head, tail = "", ""
    while cell_len(head) < (width - 1) // 3:
        head += text[len(head)]
    while cell_len(f"{head}…{tail}{text[-len(tail) - 1]}") <= width:
        tail = text[-len(tail) - 1 :]
    return f"{head}…{tail}"


def flush() -> None:
    """Write what was printed, so that it fails here and not when the interpreter ends. Raises as `give_up`."""
    try:
        if sys.stdout is not None:  # it is where the process was started without one
            sys.stdout.flush()
    except OSError as error:
        give_up(error)


def give_up(error: OSError) -> NoReturn:
    """Raises SystemExit where nobody reads standard output, UserError where it cannot be written for another reason."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in buffers goes nowhere, and without complaint
    if isinstance(error, BrokenPipeError):
        sys.exit(EXIT_NO_READER)
    raise UserError(f"standard output cannot be written ({error.strerror}): name another place, or fix this one")


def reserve_standard_descriptors() -> None:
    """Open nothing in place of the input and outputs that the job was started without, as by `>&-`.

    Else the next file or socket gets such a number, and what a library prints goes there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one


def wants_color(descriptor: int) -> bool:
    """Whether what is written there may be colored: to a terminal, unless NO_COLOR is set (no-color.org)."""
    return os.isatty(descriptor) and not os.environ.get("NO_COLOR")
