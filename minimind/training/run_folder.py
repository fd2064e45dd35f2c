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

import filecmp
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from minimind.atomic_io import link_or_copy, replace_file, sync
from minimind.model.pretrained import MODEL_FILES, OURS, save
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.tokenizer.files import parse_object
from minimind.training import distributed
from minimind.training.checkpoint import remove_checkpoints
from minimind.training.precision import DTYPES, Precision

WEIGHTS = "model.safetensors"
LAST, CHECKPOINTS = "last", "checkpoints"
METRICS, RECORD, CARD = "metrics.jsonl", "run.json", "README.md"
NON_FINITE = "non_finite_rows.jsonl"
OTHERS = (RECORD, CARD, "loss.png", "rejected.jsonl", NON_FINITE)
CARD_TITLE = "# A chat model fine-tuned with minimind"


class RunWeights:
    """Writes the weights of a run for use, on the main process; all processes call it alike.

    A record or a card that names other weights is removed before they change: the command writes
    new ones at its end. minimind.json beside them says which step's they are; while they change, it
    says that the step isn't known.

    Attributes:
        best: the file with the best weights so far, None before there are any.
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
        self.best: Path | None = None

    def save_best(self, step: int, loss: float | None) -> None:
        self._save(self._out, step, loss)
        self.best = self._out / WEIGHTS

    def save_last(self, step: int, loss: float | None) -> None:
        self._save(self._out / LAST, step, loss)

    def save_stopped(self, step: int, loss: float) -> None:
        """Put weights that no scheduled validation has seen in the best ones' place, for now."""
        self._save(self._out, step, loss)

    def restore_best(self, step: int, loss: float) -> None:
        """Put the best weights in their place, where others are: later ones, or a stop's."""
        top = self._out / WEIGHTS
        if self.best is None or not distributed.is_main_process():
            return
        is_there = top.exists() and filecmp.cmp(self.best, top, shallow=False)
        if is_there and read_run(self._out).get("step") == step:
            return
        _drop_record(self._out)
        self._describe(self._out)
        if not is_there:
            with tempfile.TemporaryDirectory(dir=self._out, prefix=".saving-") as name:
                aside = Path(name) / WEIGHTS
                link_or_copy(self.best, aside)
                sync(aside)
                os.replace(aside, top)
            sync(self._out)
        self._describe(self._out, step, loss)

    def end(self, finished: bool) -> None:
        """Say beside the weights whether their run is finished."""
        for folder in (self._out, self._out / LAST):
            if distributed.is_main_process() and (run := read_run(folder)):
                self._describe(folder, run["step"], run["validation_loss"], finished)

    def _describe(
        self,
        folder: Path,
        step: int | None = None,
        loss: float | None = None,
        finished: bool = False,
    ) -> None:
        about = {"system_message": self._system, **_about(step, loss, finished)}
        replace_file(folder / OURS, json.dumps(about, ensure_ascii=False, indent=2) + "\n")

    def _save(self, folder: Path, step: int, loss: float | None) -> None:
        full = distributed.gather_model(self._model)
        if distributed.is_main_process():
            _drop_record(self._out)
            self._describe(folder)
            save(folder, full, self._tokenizer, self._dtype, self._system, _about(None, None))
            self._describe(folder, step, loss)


def _about(step: int | None, loss: float | None, finished: bool = False) -> dict[str, object]:
    return {"step": step, "validation_loss": loss, "finished": finished}


def read_run(folder: Path) -> dict[str, Any]:
    """What minimind.json says of the run that a folder's weights are of; empty where nothing."""
    path = folder / OURS
    about = parse_object(path.read_bytes(), path) if path.is_file() else {}
    return {name: about.get(name) for name in _about(None, None)} if "finished" in about else {}


def describe_unfinished(folder: Path) -> str | None:
    """A sentence on weights whose run hasn't ended, None of others."""
    run = read_run(folder)
    if not run or run["finished"]:
        return None
    of = {0: "the untuned base, step 0", None: "weights of an unknown step"}
    which = of.get(run["step"], f"the weights of step {run['step']}")
    return f"{folder}: its run hasn't ended; these are {which}"


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


def bytes_of(folder: Path, without: Path | None = None) -> int:
    """What the files in a folder take on the disk, each counted once; but those in `without`."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and without not in path.parents:
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
