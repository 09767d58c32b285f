"""Lists of sentences that are no part of the process's own memory, however many they are."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np

from sst2.utils.scratch import MemoryMappedWriter, blocks


class Sentences(Sequence[str]):
    """Sentences as UTF-8, end to end in one mapped array.

    Attributes:
        text: (bytes,) uint8.
        offsets: (sentences + 1,) int64; sentence i is text[offsets[i]:offsets[i + 1]].
    """

    def __init__(self, text: np.ndarray, offsets: np.ndarray) -> None:
        self.text = text
        self.offsets = offsets

    @classmethod
    def of(cls, sentences: Iterable[str]) -> "Sentences":
        """Raises UserError: no room for temporary files."""
        writer = SentenceWriter()
        for sentence in sentences:
            writer.append(sentence)
        return writer.finish()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            return self._read(start, stop) if step == 1 else [self[i] for i in range(start, stop, step)]
        position = range(len(self))[row]  # counts from the end, or raises IndexError, as lists do
        return self._read(position, position + 1)[0]

    def __iter__(self) -> Iterator[str]:
        for block in blocks(len(self)):
            yield from self._read(block.start, block.stop)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sentences | list):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # none, as of a list

    def take(self, rows: np.ndarray | range) -> "Sentences":
        """The sentences of these rows, in their order.

        Args:
            rows: (sentences,) row numbers from 0.

        Raises:
            UserError: no room for temporary files.
        """
        text, offsets, end = MemoryMappedWriter("|u1"), MemoryMappedWriter("<i8"), 0
        offsets.append(bytes(8))
        for block in blocks(len(rows)):
            numbers = np.asarray(rows[block], dtype=np.int64)
            starts = self.offsets[numbers]
            lengths = self.offsets[numbers + 1] - starts
            ends = np.cumsum(lengths)
            text.append(self.text[np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1])].tobytes())
            offsets.append((end + ends).astype("<i8").tobytes())
            end += int(ends[-1])
        return Sentences(text.finish(), offsets.finish())

    def _read(self, start: int, stop: int) -> list[str]:
        if start >= stop:
            return []
        offsets = self.offsets[start : stop + 1]
        text = self.text[offsets[0] : offsets[-1]].tobytes()
        return [text[begin:end].decode() for begin, end in pairwise((offsets - offsets[0]).tolist())]


class SentenceWriter:
    """Makes `Sentences`, one after another."""

    def __init__(self) -> None:
        self._text, self._offsets, self._end = MemoryMappedWriter("|u1"), MemoryMappedWriter("<i8"), 0
        self._offsets.append(bytes(8))

    def append(self, sentence: str) -> None:
        """Raises UserError: no room for temporary files."""
        encoded = sentence.encode()
        self._end += len(encoded)
        self._text.append(encoded)
        self._offsets.append(self._end.to_bytes(8, "little"))

    def finish(self) -> Sentences:
        """Map what was appended. Nothing can be appended any more."""
        return Sentences(self._text.finish(), self._offsets.finish())
