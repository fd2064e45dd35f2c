"""Find rows that say the same, or nearly. Knows no files of rows.

    row ---> key, 64 bits of all it says            equal keys: duplicates
        \\--> signature, 128 MinHash values          many equal values: candidates
        \\--> text                                   of candidates compared: near duplicates
                                                     (of rows with the same numbers)

All three are kept on disk; in memory are some numbers a row. Of those that say the same the first
is kept. Rows of more than LONGEST characters are compared for equality only.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minimind.data.conversation import Conversation
from minimind.text.ngrams import LONGEST

if TYPE_CHECKING:
    from datasketch import MinHash

Ints = npt.NDArray[np.int64]

VALUES = 128  # of a signature: it estimates a similarity to about ±0.04
SLACK = 0.12  # what an estimate may be too low by, three times that
BAND = 4  # values that two rows must share to be compared: above 0.6 it fails one time in 80
LETTERS = 5  # of the n-grams whose shares are compared
COMPARED = 2**14  # pairs at once
# One character each, so that in short rows what is said weighs more than who says it.
_ROLE = {"system": "\0", "user": "\1", "assistant": "\2", "tool": "\3"}
_NUMBER = re.compile(r"\d+")


def minhash_available() -> bool:
    """Whether datasketch, which makes the signatures, is installed."""
    try:
        import datasketch  # noqa: F401
    except ImportError:
        return False
    return True


class DuplicateFinder:
    """Takes rows one by one, then tells which repeat an earlier one; a context manager.

    Args:
        folder: exists, for files that grow by half a kilobyte a row, and its text.
        near: whether to make signatures; needs datasketch.
    """

    def __init__(self, folder: Path, near: bool) -> None:
        names = ("keys.bin", "numbers.bin", "signatures.bin", "ends.bin", "texts.bin")
        self._paths = [folder / name for name in names]
        self._files = [path.open("wb") for path in self._paths]
        self._near = near
        self.rows = 0

    def __enter__(self) -> DuplicateFinder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()

    def add(self, conversation: Conversation | None) -> None:
        """Take the next row; None for one that is out anyway, and like no other."""
        messages = () if conversation is None else conversation.messages
        self._take("".join(_ROLE[m.role] + _plain(m.content) for m in messages))

    def add_text(self, text: str) -> None:
        """Take the next row, which is plain text and says something."""
        self._take(_plain(text))

    def _take(self, text: str) -> None:
        keys, numbers, signatures, ends, texts = self._files
        self.rows += 1
        keys.write(_hash(text, b"key") if text else _hash(f"row {self.rows}", b"out"))
        if self._near:
            comparable = 0 < len(text) <= LONGEST
            numbers.write(_hash(" ".join(_NUMBER.findall(text)), b"numbers"))
            signatures.write(_signature(text).tobytes() if comparable else bytes(4 * VALUES))
            texts.write(text.encode("utf-8", "surrogatepass") if comparable else b"")
            ends.write(texts.tell().to_bytes(8, "little"))

    def duplicates(self) -> Ints:
        """(rows,) the first row that says the same as each, or -1."""
        keys = self._read(0, np.dtype("<u8"))
        first = np.full(self.rows, -1, np.int64)
        rows, leaders = _pairs(keys)
        first[rows] = leaders
        return first

    def near_duplicates(self, similarity: float) -> Ints:
        """(rows,) an earlier row that stays and says nearly the same as each, or -1.

        Args:
            similarity: least share of common 5-grams of letters (Jaccard).
        """
        first = np.full(self.rows, -1, np.int64)
        numbers = self._read(1, np.dtype("<u8"))
        candidates = np.zeros(0, np.int64)  # row and leader in one number, in order of rows
        for rows, leaders in self._alike(similarity - SLACK):
            same = numbers[rows] == numbers[leaders]
            candidates = np.union1d(candidates, rows[same] * self.rows + leaders[same])
        ends = self._read(3, np.dtype("<u8"))
        self._files[4].flush()
        with self._paths[4].open("rb") as texts:

            def grams(row: int) -> set[str]:
                start = int(ends[row - 1]) if row else 0
                texts.seek(start)
                data = texts.read(int(ends[row]) - start)
                return _grams(data.decode("utf-8", "surrogatepass"))

            for pair in candidates:
                row, leader = divmod(int(pair), self.rows)
                if first[row] < 0 and first[leader] < 0:
                    a, b = grams(row), grams(leader)
                    if len(a & b) >= similarity * len(a | b):
                        first[row] = leader
        return first

    def _alike(self, similarity: float) -> Iterator[tuple[Ints, Ints]]:
        """Rows that share a band with an earlier one and are alike, and that one; band by band."""
        if not (self._near and self.rows):
            return
        signatures = self._read(2, np.dtype("<u4")).reshape(-1, VALUES)
        for start in range(0, VALUES, BAND):
            band = np.ascontiguousarray(signatures[:, start : start + BAND]).astype(np.uint64)
            mixed = np.zeros(self.rows, np.uint64)
            for column in band.T:
                mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
                mixed ^= mixed >> np.uint64(29)
            out = np.flatnonzero(~band.any(1))
            mixed[out] = out  # each like no other
            rows, leaders = _pairs(mixed)
            alike = np.zeros(len(rows), bool)
            for first in range(0, len(rows), COMPARED):
                some = slice(first, first + COMPARED)
                same = signatures[rows[some]] == signatures[leaders[some]]
                alike[some] = same.mean(1) >= similarity
            yield rows[alike], leaders[alike]

    def _read(
        self, index: int, dtype: np.dtype[np.unsignedinteger]
    ) -> npt.NDArray[np.unsignedinteger]:
        self._files[index].flush()
        if not self.rows:
            return np.zeros(0, dtype)
        return np.memmap(self._paths[index], dtype=dtype, mode="r")


def _pairs(keys: npt.NDArray[np.unsignedinteger]) -> tuple[Ints, Ints]:
    """The rows that aren't the first of their key, and the first row of each one's key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    leaders = order[np.repeat(begins, np.diff(np.append(begins, len(order))))]
    repeated = leaders != order
    return order[repeated], leaders[repeated]


def _signature(text: str) -> npt.NDArray[np.uint32]:
    sketch = _empty_sketch().copy()
    sketch.update_batch([gram.encode("utf-8", "surrogatepass") for gram in _grams(text)])
    values: npt.NDArray[np.uint32] = sketch.hashvalues.astype("<u4")
    return values


@cache
def _empty_sketch() -> MinHash:
    """Copied for each row: to draw its permutations takes longer than a row does."""
    from datasketch import MinHash

    return MinHash(num_perm=VALUES, seed=1, hashfunc=zlib.crc32)


def _grams(text: str) -> set[str]:
    return {text[start : start + LETTERS] for start in range(max(1, len(text) - LETTERS + 1))}


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hash(text: str, person: bytes) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8, person=person).digest()
