"""The files of a run's folder: their names, and how its weights get there.

runs/NAME-1/
    config.json, model.safetensors, ...   the best weights: a Hugging Face folder, and minimind.json
    last/                    the last weights, likewise
    checkpoints/             what a run resumes from
    metrics.jsonl run.json   what happened, and with which options and versions
    README.md loss.png       fine-tuning: a model card, the losses
    rejected.jsonl           fine-tuning: rows that were skipped
    non_finite_rows.jsonl    rows of the step whose loss or gradient ended the run
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from minimind.model.pretrained import MODEL_FILES, save
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training import distributed
from minimind.training.checkpoint import remove_checkpoints
from minimind.training.precision import DTYPES, Precision

WEIGHTS = "model.safetensors"
LAST, CHECKPOINTS = "last", "checkpoints"
METRICS, RECORD, CARD = "metrics.jsonl", "run.json", "README.md"
NON_FINITE = "non_finite_rows.jsonl"
OTHERS = (RECORD, CARD, "loss.png", "rejected.jsonl", NON_FINITE)
CARD_TITLE = "# A chat model fine-tuned with minimind"

_BEFORE = "before.safetensors"  # among the checkpoints: the best weights when a run stopped early


class RunWeights:
    """Writes the weights of a run for use, on the main process; all processes call it alike.

    A record or a card that names other weights is removed before they change: the command writes
    new ones at its end.
    """

    def __init__(
        self,
        out: Path,
        model: Transformer,
        tokenizer: Tokenizer,
        dtype: Precision,
        system: str | None,
    ) -> None:
        self._out, self._model, self._tokenizer = out, model, tokenizer
        self._dtype, self._system = DTYPES[dtype], system
        self._before = out / CHECKPOINTS / _BEFORE

    def save_best(self) -> None:
        self._save(self._out)
        if distributed.is_main_process():
            self._before.unlink(missing_ok=True)

    def save_last(self) -> None:
        self._save(self._out / LAST)

    def save_stopped(self) -> None:
        """Put weights that no scheduled validation has seen in the best ones' place, for now."""
        weights = self._out / WEIGHTS
        if distributed.is_main_process() and not self._before.exists() and weights.exists():
            try:
                self._before.hardlink_to(weights)
            except OSError:  # some file systems have no hard links
                shutil.copyfile(weights, self._before)
        self._save(self._out)

    def restore_best(self) -> None:
        """Undo `save_stopped`: an uninterrupted run would have the weights from before it."""
        if distributed.is_main_process() and self._before.exists():
            _drop_record(self._out)
            os.replace(self._before, self._out / WEIGHTS)

    def _save(self, folder: Path) -> None:
        full = distributed.gather_model(self._model)
        if distributed.is_main_process():
            _drop_record(self._out)
            save(folder, full, self._tokenizer, self._dtype, self._system)


def is_run(folder: Path) -> bool:
    """Whether a run has written there: its metrics, which begin with a step or are still empty."""
    try:
        with (folder / METRICS).open("rb") as file:
            line = file.readline(2**16)
        return not line or "step" in json.loads(line)
    except (OSError, ValueError, TypeError):
        return False


def written_by_a_run(folder: Path) -> list[str]:
    """The names in a folder that a run would write, too."""
    return [
        name
        for name in (*MODEL_FILES, LAST, CHECKPOINTS, METRICS, *OTHERS)
        if os.path.lexists(folder / name)
    ]


def remove_run(folder: Path) -> None:
    """Remove what a run has written; other files stay."""
    for name in written_by_a_run(folder):
        path = folder / name
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif name == CHECKPOINTS:
            remove_checkpoints(path)
            (path / _BEFORE).unlink(missing_ok=True)
            _remove_if_empty(path)
        elif name == LAST:
            for file in MODEL_FILES:
                (path / file).unlink(missing_ok=True)
            _remove_if_empty(path)
    for unfinished in folder.glob(".saving-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def is_our_card(card: Path) -> bool:
    """Whether a README.md is the model card of a run, or none is there."""
    try:
        return card.read_text(encoding="utf-8", errors="replace").startswith(CARD_TITLE)
    except FileNotFoundError:
        return True


def bytes_of(folder: Path) -> int:
    """What the files in a folder take on the disk, each counted once."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            files[status.st_dev, status.st_ino] = status.st_size
    return sum(files.values())


def _drop_record(out: Path) -> None:
    (out / RECORD).unlink(missing_ok=True)
    if is_our_card(out / CARD):
        (out / CARD).unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
