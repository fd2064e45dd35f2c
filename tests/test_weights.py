"""Of a pickle a plain dictionary of tensors is taken; all else is refused with a sentence."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimind.model.pretrained import load
from minimind.model.weights import open_state_dict, open_weights
from tests.support.checkpoints import write_checkpoint

SAVE = r"; save the weights alone, with torch\.save\(model\.state_dict\(\), FILE\)$"


class Model(torch.nn.Module):
    """Saved whole: its pickle names this class."""


REFUSED = {
    "a whole model": (Model(), r"it calls \w[\w.]*\.Model"),
    "MiniMind's resume file": (
        {"model": {"a": torch.ones(1)}, "optimizer": {}, "epoch": 3, "step": 10},
        "'model' is a dict, and no plain tensor",
    ),
    "a number": ({"a": torch.ones(1), "step": 3}, "'step' is a int, and no plain tensor"),
    "a number as key": ({0: torch.ones(1)}, "0 is a Tensor, and no plain tensor"),
    "a list": ([torch.ones(1)], "a list of no tensors"),
    "a tensor": (torch.ones(1), "a Tensor of no tensors"),
    "nothing in it": ({}, "a dict of no tensors"),
    "one number for many": ({"a": torch.ones(1).expand(2**40)}, "'a' is a Tensor, and no plain"),
    "no numbers": ({"a": torch.ones(4, device="meta")}, "'a' is a Tensor, and no plain tensor"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "'a' is a Tensor, and no plain tensor"),
    "a set": ({"a": {1, 2}}, "'a' is a set, and no plain tensor"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_is_no_plain_state_dict_is_refused(kind, zipped, tmp_path) -> None:
    value, fact = REFUSED[kind]
    path = tmp_path / "model.pth"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"/model\.pth: not a plain state dict \({fact}.*{SAVE}"):
        open_state_dict(path)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_damaged_pickle_is_refused(share: float, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.rand(999)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    damaged = (
        rf"/model\.pth: not a plain state dict \(damaged, or not written by torch\.save\){SAVE}"
    )
    with pytest.raises(ValueError, match=damaged):  # none of PyTorch's advice, to run the code
        open_state_dict(path)
    for other in (pickle.dumps({"a": 1}), b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=damaged):
            open_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_plain_state_dict_is_read_to_the_bit(zipped: bool, tmp_path: Path) -> None:
    tensors = {
        "a": torch.rand(3, 4),
        "b": torch.nn.Parameter(torch.rand(5)),
        "c": torch.rand(2, 3).T,
    }
    tensors["tied"] = tensors["a"]
    path = tmp_path / "model.pth"
    torch.save(OrderedDict(tensors), path, _use_new_zipfile_serialization=zipped)
    found = open_state_dict(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name][:], tensors[name]) for name in tensors)
    assert not any(found[name][:].requires_grad for name in tensors)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_a_folders_pickle_gives_the_weights_that_safetensors_gave(name, tmp_path) -> None:
    write_checkpoint(tmp_path, "qwen3", tie_word_embeddings=True)
    expected = load(tmp_path)[0].state_dict()
    stored = load_file(tmp_path / "model.safetensors")
    torch.save({f"_orig_mod.{key}": value for key, value in stored.items()}, tmp_path / name)
    (tmp_path / "model.safetensors").unlink()
    if name == "pytorch_model.bin":
        found = load(tmp_path)[0].state_dict()
    else:
        said = re.escape(f"only {name}, whose name says nothing of what is in it; if it is the mod")
        with pytest.raises(FileNotFoundError, match=rf"{said}.* give the file itself: .*{name}$"):
            load(tmp_path)
        with pytest.warns(UserWarning, match=r"rope_theta 10000 \(config\.json\)"):
            found = load(tmp_path / name)[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("key", ["a", "module.a"])
def test_the_same_weight_twice_and_numbers_of_another_kind_are_errors(key, tmp_path) -> None:
    write_checkpoint(tmp_path, "qwen3", tie_word_embeddings=True)
    stored = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    wrong = {"model.norm.weight": torch.ones(64, dtype=torch.int64)}
    torch.save(stored | wrong, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds torch\.int64, not floating"):
        load(tmp_path)
    twice = {f"{key}.b": torch.ones(1), "_orig_mod.a.b": torch.ones(1)}
    torch.save(twice, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"_model\.bin: a\.b is there twice; keep one of the two"):
        open_weights(tmp_path)


def test_a_folders_pickle_is_no_link_to_elsewhere(tmp_path) -> None:
    write_checkpoint(tmp_path / "base", "qwen3")
    torch.save({"a": torch.ones(1)}, tmp_path / "secret.bin")
    (tmp_path / "base/model.safetensors").unlink()
    (tmp_path / "base/pytorch_model.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: is a link that leaves its folder"):
        load(tmp_path / "base")
