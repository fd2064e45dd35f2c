"""Options that say how rows are read. Every command that reads rows takes these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnBadRow = Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True)
class RowKeys:
    """Which keys of a row are read."""

    prompt_key: str | None = None
    """With --answer-key: the key that holds the question."""
    answer_key: str | None = None
    """With --prompt-key: the key that holds the answer."""
    ignore_keys: tuple[str, ...] = ()
    """Read rows and messages as if they didn't have these keys, and count them no more."""

    def __post_init__(self) -> None:
        if (self.prompt_key is None) != (self.answer_key is None):
            raise ValueError("one of --prompt-key and --answer-key is missing; give both or none")


@dataclass(frozen=True, kw_only=True)
class RowOptions(RowKeys):
    """How rows become conversations."""

    system: str | None = None
    """System message of rows that have none."""
    on_bad_row: OnBadRow = "stop"
    """At a row that can't be used: stop, or skip and count it."""
