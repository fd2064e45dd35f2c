"""What a run goes on from: whole or passed over, never half."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from minimind.data.packing import make_steps
from minimind.model.transformer import Transformer
from minimind.training import checkpoint
from minimind.training.checkpoint import load_checkpoint, save_checkpoint
from minimind.training.loop import TrainConfig, TrainState, train
from tests.ragged import new_model, ragged_rows

EXTRA = {"identity": {"data": "한국어.jsonl", "seed": 3}, "losses": [0.1, 1e-30, 1 / 3]}
STEPS = make_steps(ragged_rows(8), tokens_per_step=40, epochs=3)


def trained(steps: int, precision: str = "fp32") -> tuple[Transformer, TrainState]:
    """A model and its state after some steps."""
    model = new_model()
    config = TrainConfig(precision=precision, learning_rate=1e-3)
    state = TrainState(model, config)
    for _ in islice(train(model, STEPS, config, state), steps):
        pass
    return model, state


def fresh(precision: str = "fp32") -> tuple[Transformer, TrainState]:
    model = new_model(seed=99)
    return model, TrainState(model, TrainConfig(precision=precision))


def same(one: object, other: object) -> bool:
    """Equal to the last bit, all the way down; a list is as good as a tuple."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_is_saved_is_loaded_bit_for_bit(precision, tmp_path) -> None:
    model, state = trained(3, precision)
    torch.manual_seed(5)
    save_checkpoint(tmp_path, model, state, EXTRA)
    expected = torch.rand(4)
    other_model, other_state = fresh(precision)
    torch.manual_seed(6)
    extra, passed_over = load_checkpoint(tmp_path, other_model, other_state)
    assert extra == EXTRA
    assert passed_over == []
    assert same(model.state_dict(), other_model.state_dict())
    assert same(state.state_dict(), other_state.state_dict())
    assert other_state.step == 3
    assert torch.equal(torch.rand(4), expected)  # random numbers go on too


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loaded_run_ends_with_the_weights_of_an_uninterrupted_one(precision, tmp_path) -> None:
    whole, _ = trained(len(STEPS), precision)
    save_checkpoint(tmp_path, *trained(4, precision), EXTRA)
    config = TrainConfig(precision=precision, learning_rate=1e-3)
    model, state = fresh(precision)
    load_checkpoint(tmp_path, model, state)
    assert len(list(train(model, STEPS, config, state))) == len(STEPS) - 4
    assert same(whole.state_dict(), model.state_dict())


def test_a_run_keeps_the_precision_it_began_with(tmp_path) -> None:
    """The probe may find another one faster now; fp16 without its scaler would lose gradients."""
    save_checkpoint(tmp_path, *trained(2, "fp16"), EXTRA)
    _, state = fresh("fp32")
    load_checkpoint(tmp_path, new_model(), state)
    assert state.precision == "fp16"
    assert state.scaler.is_enabled()
    save_checkpoint(tmp_path, *trained(3, "bf16"), EXTRA)
    _, state = fresh("fp16")
    load_checkpoint(tmp_path, new_model(), state)
    assert state.precision == "bf16"
    assert not state.scaler.is_enabled()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_and_moments_on_disk_are_float32(precision, tmp_path) -> None:
    path = save_checkpoint(tmp_path, *trained(2, precision), EXTRA)
    with safe_open(path / checkpoint.TENSORS, "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert dtypes.pop("random/cpu") == torch.uint8
    assert set(dtypes.values()) == {torch.float32}
    kinds = {name.split("/")[0] for name in dtypes}
    assert kinds == {"weights", "optimizer"}
    moments = [name for name in dtypes if name.endswith(("/exp_avg", "/exp_avg_sq"))]
    assert len(moments) == 2 * len(list(new_model().parameters()))


def test_nothing_is_ever_pickled_or_unpickled(tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    model, state = trained(1)
    other = fresh()
    for module, name in [
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (pickle, "dump"),
        (pickle, "dumps"),
        (pickle, "Pickler"),
        (torch, "load"),
        (torch, "save"),
    ]:
        monkeypatch.setattr(module, name, refuse)
    path = save_checkpoint(tmp_path, model, state, EXTRA)
    assert load_checkpoint(tmp_path, *other)[0] == EXTRA
    names = {file.name for file in path.iterdir()}
    assert names == {"tensors.safetensors", "state.json", "manifest.json"}


def test_without_a_checkpoint_nothing_is_loaded(tmp_path) -> None:
    model, state = fresh()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert load_checkpoint(tmp_path, model, state) == (None, [])
    assert load_checkpoint(tmp_path / "absent", model, state) == (None, [])
    assert same(model.state_dict(), before)
    assert state.step == 0


def test_a_check_may_refuse_a_checkpoint_before_anything_of_it_is_loaded(tmp_path) -> None:
    save_checkpoint(tmp_path, *trained(2), EXTRA)
    model, state = new_model(seed=99, hidden_size=16), None  # not even the sizes agree

    def refuse(extra: dict[str, object]) -> None:
        assert extra == EXTRA
        raise ValueError("another run's")

    with pytest.raises(ValueError, match="another run's"):
        load_checkpoint(tmp_path, model, state, refuse)


# Which checkpoints stay


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_only_the_newest_few_are_kept(keep, left, tmp_path) -> None:
    model, state = trained(1)
    for step in (1, 2, 3, 4, 5):
        state.step = step
        save_checkpoint(tmp_path, model, state, EXTRA, keep=keep)
    assert steps_in(tmp_path) == left


def test_damaged_later_ones_do_not_push_out_the_one_just_written(tmp_path) -> None:
    model, state = trained(1)
    for step in (10, 20, 30):
        state.step = step
        save_checkpoint(tmp_path, model, state, EXTRA, keep=3)
    for step in (20, 30):
        (tmp_path / f"step-{step:08d}" / checkpoint.MANIFEST).unlink()
    load_checkpoint(tmp_path, model, state)
    state.step = 15
    save_checkpoint(tmp_path, model, state, EXTRA, keep=2)
    assert steps_in(tmp_path) == [10, 15]


def test_what_a_crash_left_half_written_is_cleared_away(tmp_path) -> None:
    (tmp_path / ".writing-step-00000007").mkdir()
    (tmp_path / ".writing-step-00000007" / "tensors.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path, *trained(1), EXTRA)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


# Damage


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])  # the last one may be a newline


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fill_with_zeros(path: Path) -> None:
    """What some file systems leave after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


def replace_by_a_list(path: Path) -> None:
    path.write_text("[]")


DAMAGES = [flip_a_byte, cut_short, empty, fill_with_zeros, Path.unlink, replace_by_a_list]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_passed_over_with_a_message(name, damage, tmp_path) -> None:
    model, state = trained(1)
    old = {key: x.clone() for key, x in model.state_dict().items()}
    save_checkpoint(tmp_path, model, state, EXTRA)
    with torch.no_grad():
        model.model.norm.weight += 1
    state.step = 2
    newest = save_checkpoint(tmp_path, model, state, {})
    damage(newest / name)
    other_model, other_state = fresh()
    extra, (message,) = load_checkpoint(tmp_path, other_model, other_state)
    assert message.startswith(f"{newest}: ")
    assert message.endswith("; passed over for the one before it")
    assert extra == EXTRA
    assert other_state.step == 1
    assert same(other_model.state_dict(), old)


def test_where_all_are_damaged_each_is_named_and_the_run_begins_anew(tmp_path) -> None:
    model, state = trained(1)
    for step in (1, 2):
        state.step = step
        flip_a_byte(save_checkpoint(tmp_path, model, state, EXTRA) / checkpoint.TENSORS)
    other_model, other_state = fresh()
    extra, messages = load_checkpoint(tmp_path, other_model, other_state)
    assert extra is None
    assert [message.partition(":")[0][-2:] for message in messages] == ["02", "01"]
    assert all("tensors.safetensors isn't what was written" in message for message in messages)
    assert other_state.step == 0


# Interruption


class Crash(BaseException):
    """Stands for a crash: nothing in the package catches it."""


class Fuse:
    """Lets some file operations through, then one fails half-way: half written, half removed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, left: int) -> None:
        self.error, self.left, self.inside = error, left, False
        self.failed: list[str] = []
        places: list[tuple[object, str]] = [
            (checkpoint, "save_file"),
            (Path, "mkdir"),
            (Path, "write_text"),
            (Path, "rename"),
            (shutil, "rmtree"),
            (os, "open"),
            (os, "fsync"),
        ]
        for owner, name in places:
            monkeypatch.setattr(owner, name, self.guard(name, getattr(owner, name)))

    def guard(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def operation(*args, **kwargs):
            if self.inside:  # part of another operation
                return real(*args, **kwargs)
            self.left -= 1
            self.inside = True
            try:
                if self.left >= 0:
                    return real(*args, **kwargs)
                if name in ("save_file", "write_text"):
                    real(*args, **kwargs)
                    path = Path(args[1] if name == "save_file" else args[0])
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                if name == "rmtree":
                    for file in sorted(Path(args[0]).glob("*"))[:1]:
                        file.unlink()
            finally:
                self.inside = False
            self.failed.append(name)
            self.left = 10**9
            raise self.error

        return operation


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), Crash()],
    ids=["ENOSPC", "crash"],
)
def test_an_interrupted_write_leaves_a_checkpoint_to_go_on_from(error, tmp_path) -> None:
    """Fail at the first file operation, then at the second, ... until one save comes through."""
    model, state = trained(2)
    other_model, other_state = fresh()
    old = [x.clone() for x in model.state_dict().values()]
    moved = new_model(seed=7)
    save_checkpoint(tmp_path / "good", model, state, EXTRA)
    (tmp_path / "good" / "step-00000003").mkdir()  # of an earlier crash
    operations: set[str] = set()
    for count in range(100):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path / "good", folder)
        state.step = 3
        with pytest.MonkeyPatch.context() as monkeypatch:
            fuse = Fuse(monkeypatch, error, left=count)
            with suppress(type(error)):
                save_checkpoint(folder, moved, state, {"new": True}, keep=1)
                assert not fuse.failed  # an error is never swallowed
        operations.update(fuse.failed)
        extra, _ = load_checkpoint(folder, other_model, other_state)
        loaded = list(other_model.state_dict().values())
        if extra == EXTRA:
            assert other_state.step == 2
            assert all(map(torch.equal, loaded, old))
        else:
            assert extra == {"new": True}
            assert other_state.step == 3
            assert all(map(torch.equal, loaded, moved.state_dict().values()))
        if not fuse.failed:
            break
        # After the trouble is over, saving works again.
        save_checkpoint(folder, moved, state, {"new": True}, keep=1)
        assert load_checkpoint(folder, other_model, other_state) == ({"new": True}, [])
        assert steps_in(folder) == [3]
    assert not fuse.failed
    assert count > 10
    assert operations == {"save_file", "mkdir", "write_text", "rename", "rmtree", "open", "fsync"}


def test_a_checkpoint_gets_its_name_only_when_all_of_it_is_on_the_disk(
    tmp_path, monkeypatch
) -> None:
    synced: list[str] = []
    real_open, real_fsync, real_rename = os.open, os.fsync, Path.rename
    opened: dict[int, str] = {}

    def note_open(path, *args):
        descriptor = real_open(path, *args)
        opened[descriptor] = Path(path).name
        return descriptor

    def note_fsync(descriptor):
        synced.append(opened[descriptor])
        real_fsync(descriptor)

    def note_rename(path, target):
        synced.append("renamed")
        return real_rename(path, target)

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    path = save_checkpoint(tmp_path, *trained(1), EXTRA)
    assert synced == [
        "tensors.safetensors",
        "state.json",
        "manifest.json",
        f".writing-{path.name}",
        "renamed",
        tmp_path.name,
    ]


def test_state_is_plain_json_a_person_can_read(tmp_path) -> None:
    path = save_checkpoint(tmp_path, *trained(2), EXTRA)
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    assert state["step"] == 2
    assert "한국어" in (path / "state.json").read_text(encoding="utf-8")
