"""Find rows that say the same, or nearly the same.

    row ---> key, 64 bits of all its text           equal keys: duplicates
        \\--> signature, 128 MinHash values          many equal values: candidates
        \\--> text                                   candidates compared: near duplicates
                                                     (of rows with the same numbers)

All three are kept on disk, and some numbers a row in memory. Of rows that say the same the first is
kept. Rows of more than LONGEST characters are compared for equality only.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minimind.data.conversation import Conversation
from minimind.data.normal_form import normalize
from minimind.text.ngrams import LONGEST

if TYPE_CHECKING:
    from datasketch import MinHash

Ints = npt.NDArray[np.int64]

VALUES = 128  # of a signature: it estimates a similarity to about ±0.04
SLACK = 0.12  # three times that: how much too low an estimate may be
BAND = 4  # values that candidates share: above a similarity of 0.6, one pair in 80 is missed
LETTERS = 5  # of an n-gram
BLOCK_PAIRS = 2**14  # compared at once
# One character each, so that in short rows the text weighs more than the roles.
_ROLE = {"system": "\0", "user": "\1", "assistant": "\2", "tool": "\3"}
_NUMBER = re.compile(r"\d+")


def minhash_available() -> bool:
    """Whether datasketch, which computes the signatures, is installed."""
    return find_spec("datasketch") is not None


class DuplicateFinder:
    """Takes rows one by one, then finds those that repeat an earlier one; a context manager.

    Args:
        folder: exists; files in it grow by half a kilobyte and the text of each row.
        near: whether to look for near duplicates, too; needs datasketch.
    """

    def __init__(self, folder: Path, near: bool) -> None:
        names = ("keys.bin", "numbers.bin", "signatures.bin", "ends.bin", "texts.bin")
        self._paths = [folder / name for name in names]
        self._files = [path.open("wb") for path in self._paths]
        self._near = near
        self.rows = 0

    def __enter__(self) -> DuplicateFinder:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, conversation: Conversation | None) -> None:
        """Take the next row; None, like a row without text, counts as unlike any other."""
        messages = () if conversation is None else conversation.messages
        self._add("".join(_ROLE[m.role] + _plain(m.content) for m in messages))

    def add_text(self, text: str) -> None:
        """Take the next row, a plain text."""
        self._add(_plain(text))

    def _add(self, text: str) -> None:
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
        """(rows,) the first row with the same text as each, or -1."""
        keys = self._read(0, np.dtype("<u8"))
        first = np.full(self.rows, -1, np.int64)
        rows, leaders = _pairs(keys)
        first[rows] = leaders
        return first

    def near_duplicates(self, similarity: float) -> Ints:
        """(rows,) an earlier row, itself no near duplicate, that says nearly the same, or -1.

        `similarity` is the least share of common 5-grams of letters (Jaccard).
        """
        first = np.full(self.rows, -1, np.int64)
        numbers = self._read(1, np.dtype("<u8"))
        candidates = np.zeros(0, np.int64)  # row * rows + leader, in order of rows
        for rows, leaders in self._alike(similarity - SLACK):
            same = numbers[rows] == numbers[leaders]
            candidates = np.union1d(candidates, rows[same] * self.rows + leaders[same])
        ends = self._read(3, np.dtype("<u8"))
        texts = self._read(4, np.dtype("u1"))

        def grams(row: int) -> set[str]:
            text = texts[int(ends[row - 1]) if row else 0 : int(ends[row])].tobytes()
            return _grams(text.decode("utf-8", "surrogatepass"))

        for pair in candidates:
            row, leader = divmod(int(pair), self.rows)
            if first[row] < 0 and first[leader] < 0:
                a, b = grams(row), grams(leader)
                if len(a & b) >= similarity * len(a | b):
                    first[row] = leader
        return first

    def _alike(self, similarity: float) -> Iterator[tuple[Ints, Ints]]:
        """Rows with a similar signature to an earlier row's, and that row, its leader; by band."""
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
            mixed[out] = out  # rows without a signature: unlike any other
            rows, leaders = _pairs(mixed)
            alike = np.zeros(len(rows), bool)
            for first in range(0, len(rows), BLOCK_PAIRS):
                some = slice(first, first + BLOCK_PAIRS)
                same = signatures[rows[some]] == signatures[leaders[some]]
                alike[some] = same.mean(1) >= similarity
            yield rows[alike], leaders[alike]

    def _read(
        self, index: int, dtype: np.dtype[np.unsignedinteger]
    ) -> npt.NDArray[np.unsignedinteger]:
        self._files[index].flush()
        if not self._files[index].tell():  # an empty file can't be mapped
            return np.zeros(0, dtype)
        return np.memmap(self._paths[index], dtype=dtype, mode="r")


def _pairs(keys: npt.NDArray[np.unsignedinteger]) -> tuple[Ints, Ints]:
    """The rows that aren't the first of their key, and for each the first row of its key."""
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
    """Copied for each row: drawing its permutations takes longer than a row's signature."""
    from datasketch import MinHash

    return MinHash(num_perm=VALUES, seed=1, hashfunc=zlib.crc32)


def _grams(text: str) -> set[str]:
    return {text[start : start + LETTERS] for start in range(max(1, len(text) - LETTERS + 1))}


def _plain(text: str) -> str:
    return " ".join(normalize("NFKC", text).casefold().split())


def _hash(text: str, person: bytes) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8, person=person).digest()
