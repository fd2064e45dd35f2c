"""What a run goes on from: whole or passed over, never half."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from minimind.data.plan import make_steps
from minimind.model.transformer import Transformer
from minimind.training import checkpoint
from minimind.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from minimind.training.loop import train
from minimind.training.state import TrainConfig, TrainState
from tests.support.faults import (
    BROKEN,
    NO_SPACE,
    Crash,
    Fuse,
    in_a_child,
    kill,
    raising,
    small_disk,
)
from tests.support.ragged import new_model, ragged_rows

EXTRA = {"identity": {"data": "한국어.jsonl", "seed": 3}, "losses": [0.1, 1e-30, 1 / 3]}
STEPS = make_steps(ragged_rows(8), tokens_per_step=40, epochs=3)


def trained(steps: int, precision: str = "fp32") -> tuple[Transformer, TrainState]:
    """A model and its state after some steps."""
    model = new_model()
    config = TrainConfig(precision=precision, learning_rate=1e-3)
    state = TrainState(model, config)
    for _ in islice(train(model, STEPS, config, state=state), steps):
        pass
    return model, state


def fresh(precision: str = "fp32") -> tuple[Transformer, TrainState]:
    model = new_model(seed=99)
    return model, TrainState(model, TrainConfig(precision=precision))


def load_newest(
    folder: Path, model: Transformer, state: TrainState
) -> tuple[dict[str, object] | None, list[str]]:
    """Its `extra`, None without a checkpoint; and what was passed over."""
    path, extra, passed_over = newest_checkpoint(folder)
    if path is None:
        return None, passed_over
    load_checkpoint(path, model, state)
    return extra, passed_over


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
    extra, passed_over = load_newest(tmp_path, other_model, other_state)
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
    load_newest(tmp_path, model, state)
    assert len(list(train(model, STEPS, config, state=state))) == len(STEPS) - 4
    assert same(whole.state_dict(), model.state_dict())


def test_a_run_keeps_the_precision_it_began_with(tmp_path) -> None:
    """The probe may find another one faster now; fp16 without its scaler would lose gradients."""
    save_checkpoint(tmp_path, *trained(2, "fp16"), EXTRA)
    model, state = fresh("fp32")
    load_newest(tmp_path, model, state)
    assert state.precision == "fp16"
    assert state.scaler.is_enabled()
    save_checkpoint(tmp_path, *trained(3, "bf16"), EXTRA)
    model, state = fresh("fp16")
    load_newest(tmp_path, model, state)
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


def test_small_steps_are_not_lost_in_half_precision_nor_by_resuming(tmp_path) -> None:
    """100 steps at a rate of 1e-6, begun again 10 times, move what pure float32 moves."""
    steps = make_steps(ragged_rows(8), tokens_per_step=40, epochs=25)[:100]
    assert len(steps) == 100
    before = new_model().state_dict()
    moved = {}
    for precision, calls in (("fp32", 1), ("bf16", 10)):
        config = TrainConfig(precision=precision, learning_rate=1e-6)
        for call in range(calls):
            model = new_model()
            state = TrainState(model, config)
            load_newest(tmp_path / precision, model, state)
            assert state.step == call * 10
            for _ in islice(train(model, steps, config, state=state), 100 // calls):
                pass
            save_checkpoint(tmp_path / precision, model, state, EXTRA)
        assert state.step == 100
        after = model.state_dict()
        moved[precision] = torch.cat([(after[name] != before[name]).flatten() for name in before])
    assert moved["fp32"].float().mean() > 0.99
    assert moved["bf16"][moved["fp32"]].float().mean() >= 0.99


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
    assert load_newest(tmp_path, *other)[0] == EXTRA
    names = {file.name for file in path.iterdir()}
    assert names == {"tensors.safetensors", "state.json", "manifest.json"}


def test_without_a_checkpoint_nothing_is_loaded(tmp_path) -> None:
    model, state = fresh()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert load_newest(tmp_path, model, state) == (None, [])
    assert load_newest(tmp_path / "absent", model, state) == (None, [])
    assert same(model.state_dict(), before)
    assert state.step == 0


def test_weights_that_do_not_fit_the_model_are_an_error_that_lists_them(tmp_path) -> None:
    save_checkpoint(tmp_path, *trained(2), EXTRA)
    smaller = new_model(intermediate_size=16)
    state = TrainState(smaller, TrainConfig(precision="fp32"))
    with pytest.raises(RuntimeError, match=r"size mismatch for model\.layers\.0\.mlp") as error:
        load_newest(tmp_path, smaller, state)
    assert str(error.value).count("size mismatch") == 6
    shallower = new_model(num_hidden_layers=1)
    state = TrainState(shallower, TrainConfig(precision="fp32"))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*model\.layers\.1\.mlp"):
        load_newest(tmp_path, shallower, state)


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
    load_newest(tmp_path, model, state)
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
    extra, (message,) = load_newest(tmp_path, other_model, other_state)
    assert message.startswith(f"{newest}: ")
    assert message.endswith("; using the one before it")
    assert extra == EXTRA
    assert other_state.step == 1
    assert same(other_model.state_dict(), old)


def test_where_all_are_damaged_each_is_named_and_nothing_is_loaded(tmp_path) -> None:
    model, state = trained(1)
    for step in (1, 2):
        state.step = step
        flip_a_byte(save_checkpoint(tmp_path, model, state, EXTRA) / checkpoint.TENSORS)
    other_model, other_state = fresh()
    extra, messages = load_newest(tmp_path, other_model, other_state)
    assert extra is None
    assert [message.partition(":")[0][-2:] for message in messages] == ["02", "01"]
    assert all("tensors.safetensors isn't what was written" in message for message in messages)
    assert other_state.step == 0


def test_other_folders_and_files_beside_checkpoints_are_let_be(tmp_path) -> None:
    model, state = trained(1)
    (tmp_path / "step-backup").mkdir()
    (tmp_path / "step-zzz").write_text("a note")
    for state.step in (1, 2, 3):
        save_checkpoint(tmp_path, model, state, EXTRA, keep=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000003", "step-backup", "step-zzz"]
    assert load_newest(tmp_path, *fresh())[1] == []


# Interruption


@pytest.mark.parametrize(
    "blow", [NO_SPACE, BROKEN, raising(Crash())], ids=["ENOSPC", "EIO", "crash"]
)
def test_an_interrupted_write_leaves_a_checkpoint_to_go_on_from(blow, tmp_path) -> None:
    """Fail at the first file operation, then at the second, ... until one save comes through."""
    model, state, moved = ready_to_save(tmp_path / "good")
    operations: set[str] = set()
    for count in range(100):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path / "good", folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            fuse = Fuse(monkeypatch, blow, left=count)
            with suppress(OSError, Crash):
                save_checkpoint(folder, moved, state, {"new": True}, keep=1)
                assert not fuse.failed  # an error is never swallowed
        operations.update(fuse.failed)
        either_is_loaded(folder, model, moved)
        if not fuse.failed:
            break
        # After the trouble is over, saving works again.
        save_checkpoint(folder, moved, state, {"new": True}, keep=1)
        assert load_newest(folder, *fresh()) == ({"new": True}, [])
        assert steps_in(folder) == [3]
    assert not fuse.failed
    assert count > 10
    assert operations == {"save_file", "mkdir", "write_text", "rename", "rmtree", "open", "fsync"}


def test_a_process_killed_at_any_operation_leaves_a_checkpoint_to_go_on_from(tmp_path) -> None:
    model, state, moved = ready_to_save(tmp_path / "good")
    for count in range(100):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path / "good", folder)

        def save_and_die(folder: Path = folder, count: int = count) -> None:
            with pytest.MonkeyPatch.context() as monkeypatch:
                Fuse(monkeypatch, kill, left=count)
                save_checkpoint(folder, moved, state, {"new": True}, keep=1)

        code = in_a_child(save_and_die)
        either_is_loaded(folder, model, moved)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0
    assert count > 10


@pytest.mark.parametrize("deadly", [False, True], ids=["EFBIG", "SIGXFSZ"])
def test_a_limit_on_a_files_size_leaves_a_checkpoint_to_go_on_from(deadly, tmp_path) -> None:
    """The system itself refuses to write on, or kills the process that writes."""
    model, state, moved = ready_to_save(tmp_path / "good")
    largest = (tmp_path / "good" / "step-00000002" / checkpoint.TENSORS).stat().st_size
    for limit in (0, 1, 500, 2_000, 10_000, largest // 2, largest - 1):
        folder = tmp_path / str(limit)
        shutil.copytree(tmp_path / "good", folder)

        def save_within(folder: Path = folder, limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save_checkpoint(folder, moved, state, {"new": True}, keep=1)

        assert in_a_child(save_within) == (-signal.SIGXFSZ if deadly else 1)
        assert either_is_loaded(folder, model, moved) == EXTRA


def test_a_full_disk_leaves_a_checkpoint_to_go_on_from(tmp_path, monkeypatch) -> None:
    """A real one: each time 16 kB more are free, until there is room."""
    model, state, moved = ready_to_save(tmp_path / "good")
    monkeypatch.setattr(checkpoint, "SPARE_BYTES", -(10**9))  # so that writing is tried
    refused, folder = 0, tmp_path / "disk" / "checkpoints"
    with small_disk(tmp_path / "disk", 2_000) as disk:
        for free in range(0, 10**6, 2**14):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "good", folder)
            (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - free))
            try:
                save_checkpoint(folder, moved, state, {"new": True}, keep=1)
                break
            except OSError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                refused += 1
            finally:
                either_is_loaded(folder, model, moved)
                (disk / "other").unlink()
        assert either_is_loaded(folder, model, moved) == {"new": True}
    assert refused > 3


def test_a_checkpoint_is_not_begun_where_there_is_no_room_for_it(tmp_path, monkeypatch) -> None:
    model, state, moved = ready_to_save(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OSError, match=r"a checkpoint takes 0\.\d+ GB and 0\.001 GB are free; make room"
    ):
        save_checkpoint(tmp_path, moved, state, {"new": True}, keep=1)
    assert not list(tmp_path.glob(".writing-*"))
    assert either_is_loaded(tmp_path, model, moved) == EXTRA


def ready_to_save(folder: Path) -> tuple[Transformer, TrainState, Transformer]:
    """A checkpoint of step 2 on disk, its model; the state of step 3 and its model."""
    model, state = trained(2)
    save_checkpoint(folder, model, state, EXTRA)
    (folder / "step-00000003").mkdir()  # of an earlier crash
    moved, state = trained(3)
    return model, state, moved


def either_is_loaded(folder: Path, model: Transformer, moved: Transformer) -> dict[str, object]:
    """The checkpoint of step 2 or the one of step 3, whole."""
    loaded, state = fresh()
    extra, _ = load_newest(folder, loaded, state)
    expected, step = (model, 2) if extra == EXTRA else (moved, 3)
    assert extra in (EXTRA, {"new": True})
    assert state.step == step
    assert same(loaded.state_dict(), expected.state_dict())
    return extra


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
        tmp_path.parent.name,
    ]


def test_state_is_plain_json_a_person_can_read(tmp_path) -> None:
    path = save_checkpoint(tmp_path, *trained(2), EXTRA)
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    assert state["step"] == 2
    assert "한국어" in (path / "state.json").read_text(encoding="utf-8")


def test_what_was_added_can_be_read_without_a_model(tmp_path) -> None:
    assert newest_checkpoint(tmp_path) == (None, {}, [])
    paths = [save_checkpoint(tmp_path, *trained(steps), {"steps": steps}) for steps in (1, 2)]
    assert newest_checkpoint(tmp_path) == (paths[1], {"steps": 2}, [])
    (paths[1] / "tensors.safetensors").write_bytes(b"torn")
    assert newest_checkpoint(tmp_path)[:2] == (paths[0], {"steps": 1})
