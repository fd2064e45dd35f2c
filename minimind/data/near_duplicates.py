"""Find rows that say the same, or nearly. Knows no files of rows.

    row ---> key, 64 bits of all it says            equal keys: duplicates
        \\--> signature, 128 MinHash values          many equal values: candidates
        \\--> text                                   of candidates compared: near duplicates
                                                     (of rows with the same numbers)

All three are kept on disk, so that memory hardly grows with rows. Of those that say the same the
first is kept.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from minimind.data.conversation import Conversation

Ints = npt.NDArray[np.int64]

VALUES = 128  # of a signature: it estimates a similarity to about ±0.04
SLACK = 0.12  # what an estimate may be too low by, three times that
BAND = 4  # values that two rows must share to be compared: above 0.6 it fails one time in 80
LETTERS = 5  # of the n-grams whose shares are compared
COMPARED = 2**14  # pairs at once
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
        keys, numbers, signatures, ends, texts = self._files
        self.rows += 1
        if conversation is None:
            keys.write(_hash(f"row {self.rows}", b"out"))
            numbers.write(_hash(f"row {self.rows}", b"out"))
            if self._near:
                signatures.write(bytes(4 * VALUES))
                ends.write(texts.tell().to_bytes(8, "little"))
            return
        text = "\0".join(f"{m.role}\0{_plain(m.content)}" for m in conversation.messages)
        keys.write(_hash(text, b"key"))
        numbers.write(_hash(" ".join(_NUMBER.findall(text)), b"numbers"))
        if self._near:
            signatures.write(_signature(text).tobytes())
            texts.write(text.encode("utf-8", "surrogatepass"))
            ends.write(texts.tell().to_bytes(8, "little"))

    def duplicates(self) -> Ints:
        """(rows,) the first row that says the same as each, or -1."""
        keys = self._read(0, np.dtype("<u8"))
        first = np.full(self.rows, -1, np.int64)
        for row, leader in _pairs(keys):
            first[row] = leader
        return first

    def near_duplicates(self, similarity: float) -> Ints:
        """(rows,) an earlier row that stays and says nearly the same as each, or -1.

        Args:
            similarity: least share of common 5-grams of letters (Jaccard).
        """
        first = np.full(self.rows, -1, np.int64)
        numbers = self._read(1, np.dtype("<u8"))
        candidates: set[tuple[int, int]] = set()
        for rows, leaders in self._alike(similarity - SLACK):
            same = numbers[rows] == numbers[leaders]
            candidates.update(zip(rows[same].tolist(), leaders[same].tolist(), strict=True))
        ends = self._read(3, np.dtype("<u8"))
        self._files[4].flush()
        with self._paths[4].open("rb") as texts:

            def grams(row: int) -> set[str]:
                start = int(ends[row - 1]) if row else 0
                texts.seek(start)
                data = texts.read(int(ends[row]) - start)
                return _grams(data.decode("utf-8", "surrogatepass"))

            for row, leader in sorted(candidates):
                if first[row] < 0 and first[leader] < 0:
                    a, b = grams(row), grams(leader)
                    if len(a & b) >= similarity * len(a | b):
                        first[row] = leader
        return first

    def topics(self, similarity: float = 0.5) -> Ints:
        """(rows,) a number per topic, which rows share that are alike, or through others."""
        parent = np.arange(self.rows)

        def root(row: int) -> int:
            while parent[row] != row:
                parent[row] = parent[parent[row]]
                row = int(parent[row])
            return row

        for rows, leaders in self._alike(similarity):
            for row, leader in zip(rows.tolist(), leaders.tolist(), strict=True):
                a, b = root(row), root(leader)
                parent[max(a, b)] = min(a, b)
        return np.array([root(row) for row in range(self.rows)], np.int64)

    def _alike(self, similarity: float) -> Iterator[tuple[Ints, Ints]]:
        """Rows that share a band with an earlier one and are alike, and that earlier one."""
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
            pairs = np.array(list(_pairs(mixed)), np.int64).reshape(-1, 2)
            for first in range(0, len(pairs), COMPARED):
                rows, leaders = pairs[first : first + COMPARED].T
                alike = (signatures[rows] == signatures[leaders]).mean(1) >= similarity
                yield rows[alike], leaders[alike]

    def _read(
        self, index: int, dtype: np.dtype[np.unsignedinteger]
    ) -> npt.NDArray[np.unsignedinteger]:
        self._files[index].flush()
        if not self.rows:
            return np.zeros(0, dtype)
        return np.memmap(self._paths[index], dtype=dtype, mode="r")


def _pairs(keys: npt.NDArray[np.unsignedinteger]) -> Iterator[tuple[int, int]]:
    """(row, the first row of the same key) for each row that isn't the first of its key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    leaders = order[np.repeat(begins, np.diff(np.append(begins, len(order))))]
    repeated = leaders != order
    yield from zip(order[repeated].tolist(), leaders[repeated].tolist(), strict=True)


def _signature(text: str) -> npt.NDArray[np.uint32]:
    from datasketch import MinHash

    sketch = MinHash(num_perm=VALUES, seed=1)
    sketch.update_batch([gram.encode("utf-8", "surrogatepass") for gram in _grams(text)])
    values: npt.NDArray[np.uint32] = sketch.hashvalues.astype("<u4")
    return values


def _grams(text: str) -> set[str]:
    return {text[start : start + LETTERS] for start in range(max(1, len(text) - LETTERS + 1))}


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hash(text: str, person: bytes) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8, person=person).digest()
