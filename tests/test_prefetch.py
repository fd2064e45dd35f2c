"""Batches come in order, on the device; on CUDA each is copied while the one before is used."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch

from minimind.data.packing import Batch, make_batch
from minimind.training import prefetch as module
from minimind.training.prefetch import prefetch
from tests.support.ragged import ragged_rows

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def some(count: int) -> list[Batch]:
    rows = ragged_rows(max(count, 1))
    return [make_batch(rows, np.array([row])) for row in range(count)]


def test_on_the_cpu_the_same_batches_come_one_by_one() -> None:
    batches = some(3)
    left = iter(batches)
    coming = prefetch(left, CPU)
    assert next(coming) is batches[0]
    assert next(left) is batches[1]  # none was taken ahead
    assert next(coming) is batches[2]
    assert next(coming, None) is None


def test_on_another_device_they_are_copied() -> None:
    (batch,) = prefetch(some(1), torch.device("meta"))
    assert batch.input_ids.is_meta
    assert batch.documents.lengths == some(1)[0].documents.lengths


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be queued on CUDA, in order; streams and copies are written down only."""
    log: list[str] = []
    current = ["computing"]

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def entered(stream: Stream):
        current.append(stream.name)
        yield
        current.pop()

    def enter(stream: Stream) -> AbstractContextManager[None]:
        return entered(stream)

    def copy(self: Batch, device: torch.device) -> Batch:
        log.append(f"{current[-1]} copies {self.rows[0]}")
        return self

    def record(self: torch.Tensor, stream: Stream) -> None:
        log.append(f"kept for {stream.name}")

    streams = {name: Stream(name) for name in ("copying", "computing")}
    monkeypatch.setattr(module, "_copying_stream", lambda device: streams["copying"])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams["computing"])
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(Batch, "to", copy)
    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    return log


def test_on_cuda_the_next_batch_is_copied_before_this_one_is_used(events) -> None:
    for batch in prefetch(some(3), CUDA):
        events.append(f"computing uses {batch.rows[0]}")
    assert [event for event in events if "kept" not in event] == [
        "copying copies 0",
        "computing waits for copying",
        "copying copies 1",
        "computing uses 0",
        "computing waits for copying",
        "copying copies 2",
        "computing uses 1",
        "computing waits for copying",
        "computing uses 2",
    ]
    assert events.count("kept for computing") == 3 * len(batch.tensors())


def test_no_batches_are_no_copies(events) -> None:
    assert list(prefetch([], CUDA)) == []
    assert events == []
