"""Read a model's weights, strictly: each that its config asks for, in its shape, and no other.

    model.safetensors       or the shards that model.safetensors.index.json lists
    pytorch_model.bin       where there are none of these, as a .pth: a pickled state dict

Of a pickle a plain dictionary of tensors is taken, and nothing in it is ever called.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minimind.model.config import ModelConfig
from minimind.model.families import under_llamas_names, weight_under_llamas_name
from minimind.model.minimind_files import VERSIONS, config_of_shapes
from minimind.model.transformer import Transformer
from minimind.tokenizer.files import parse_object, refuse_foreign_links

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLES = (".pth", ".pt", ".bin")  # how the name of a state dict ends
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
# As safetensors spells them; the rest is quantized.
_FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor of a pickle, as safetensors shows one of its own before it is read."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        return _FLOATS.get(self.tensor.dtype, str(self.tensor.dtype))

    def __getitem__(self, index: slice) -> Tensor:
        return self.tensor[index]


def open_weights(directory: Path) -> dict[str, Any]:
    """What reads each tensor of a directory when it is indexed, by plain names."""
    stored: dict[str, Any] = {}
    for path in _weight_files(directory):
        refuse_foreign_links([path])
        if path.name == PICKLE:
            return open_state_dict(path)
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(
                f"{path}: not a complete safetensors file ({error}); fetch it again"
            ) from None
        for key in file.keys():  # noqa: SIM118  # not a dict
            _add(stored, key, file.get_slice(key), path)
    return stored


def open_state_dict(path: Path) -> dict[str, Any]:
    """The tensors of a pickled state dict, by plain names.

    Raises:
        ValueError: it is damaged, or holds anything but tensors.
    """
    save = "save the weights alone, with torch.save(model.state_dict(), FILE)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how it was pickled
            pickled = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes end in any of them
        called = re.search(r"GLOBAL (\S+)", str(error))
        fact = f"it calls {called[1]:.80}" if called else "damaged, or not written by torch.save"
        raise ValueError(f"{path}: not a plain state dict ({fact}); {save}") from None
    if not isinstance(pickled, dict) or not pickled:
        raise ValueError(
            f"{path}: not a plain state dict (a {type(pickled).__name__} of no tensors); {save}"
        )
    stored: dict[str, Any] = {}
    for key, value in pickled.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise ValueError(
                f"{path}: not a plain state dict ({key!r:.80} is a {type(value).__name__}, and "
                f"no plain tensor); {save}"
            )
        _add(stored, key, PickledTensor(value.detach()), path)
    return stored


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with a number of its own for each element."""
    if type(value) not in (Tensor, torch.nn.Parameter):
        return False
    assert isinstance(value, Tensor)
    if value.device.type != "cpu" or value.layout != torch.strided:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _add(stored: dict[str, Any], key: str, tensor: Any, path: Path) -> None:
    name = plain_name(key)
    if name in stored:
        raise ValueError(f"{path}: {name} is there twice; keep one of the two")
    # Old Llama files hold the rotary frequencies, which are computed here.
    if not name.endswith("rotary_emb.inv_freq"):
        stored[name] = tensor


def head_is_tied(stored: Mapping[str, Any]) -> bool:
    """Whether there is no head, or the same numbers as in the embedding."""
    head, embedding = stored.get(HEAD), stored.get(EMBEDDING)
    if head is None or embedding is None:
        return head is None
    return head.get_shape() == embedding.get_shape() and torch.equal(head[:], embedding[:])


def config_of_state_dict(path: Path, stored: Mapping[str, Any]) -> ModelConfig:
    """From the shapes, a config.json beside the file, and MiniMind's defaults.

    A UserWarning names what the shapes don't tell, and where it is from.
    """
    beside = path.parent / "config.json"
    refuse_foreign_links([beside])
    given: dict[str, Any] = {}
    try:
        if beside.is_file():
            theirs = under_llamas_names(parse_object(beside.read_bytes(), beside))
            given = {key: theirs[key] for key in theirs if theirs[key] is not None}
        shapes = {name: tensor.get_shape() for name, tensor in stored.items()}
        told, published = config_of_shapes(shapes, given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    told["tie_word_embeddings"] = head_is_tied(stored)
    config = ModelConfig.from_hf({**published, **told, **given}, str(path))
    rope = given.get("rope_scaling") or given.get("rope_parameters") or {}
    default = f"{VERSIONS[told['model_type']]}'s default"
    sources = []
    for name in ("rope_theta", "rms_norm_eps", "num_attention_heads", "max_position_embeddings"):
        if name not in told:
            source = "config.json" if name in given or name in rope else default
            sources.append(f"{name} {getattr(config, name):g} ({source})")
    if config.rope_scaling is not None:
        sources.append(f"rope_scaling {config.rope_scaling.rope_type} (config.json)")
    warnings.warn(
        f"{path}: what the shapes of a state dict don't tell: {', '.join(sources)}; a config.json "
        "beside it decides",
        stacklevel=3,
    )
    return config


def read_weights(
    stored: Mapping[str, Any],
    config: ModelConfig,
    place: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Every parameter under its name; names and shapes are checked before a tensor is read."""
    with torch.device("meta"):
        expected = {key: value.shape for key, value in Transformer(config).state_dict().items()}
    tied = config.tie_word_embeddings
    checked = {name: stored[name] for name in stored if not (tied and name == HEAD)}
    if problems := _misfits(expected, checked):
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        listed = "\n    ".join(["", *problems[:10], *more])
        misfit = "config.json; use the two files of one model"
        if not ((place if place.is_dir() else place.parent) / "config.json").is_file():
            misfit = "first layer; use the weights of a whole model"
        raise ValueError(f"{place}: {len(problems)} of its weights don't fit its {misfit}{listed}")
    if tied and not head_is_tied(stored):
        raise ValueError(
            f"{place}: {HEAD} differs from {EMBEDDING}, but config.json ties them; "
            "set tie_word_embeddings to false to keep both"
        )
    # Copies, not views of the file: whatever changes the file later must not change the model.
    return {name: checked[name][:].to(device, dtype, copy=True) for name in expected}


def _weight_files(directory: Path) -> list[Path]:
    """The single file where there is one, as transformers prefers, else the shards."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if index.is_file():
        refuse_foreign_links([index])
        weight_map = parse_object(index.read_bytes(), index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: has no weight_map; fetch the file again")
        shards = sorted({str(shard) for shard in weight_map.values()})
        for shard in shards:
            if Path(shard).name != shard:
                raise ValueError(f"{index}: names {shard!r}; a shard lies in the same directory")
            if not (directory / shard).is_file():
                raise FileNotFoundError(f"{directory}: no {shard}, which {INDEX} lists; fetch it")
        return [directory / shard for shard in shards]
    if (directory / PICKLE).is_file():
        return [directory / PICKLE]
    pickles = sorted(file for end in PICKLES for file in directory.glob(f"*{end}"))
    if pickles:
        raise FileNotFoundError(
            f"{directory}: only {pickles[0].name}, whose name says nothing of what is in it; if it "
            f"is the model's state dict, give the file itself: {pickles[0]}"
        )
    raise FileNotFoundError(f"{directory}: no {WEIGHTS}; give a directory that holds weights")


def plain_name(key: str) -> str:
    """Without the marks of torch.compile (`_orig_mod`) and of DDP (`module`); as Llama names it."""
    plain = ".".join(part for part in key.split(".") if part not in ("_orig_mod", "module"))
    return weight_under_llamas_name(plain)


def _misfits(expected: Mapping[str, torch.Size], stored: Mapping[str, Any]) -> list[str]:
    problems = [f"{name} is missing" for name in expected if name not in stored]
    for name, header in stored.items():
        shape, dtype = header.get_shape(), header.get_dtype()
        if name not in expected:
            problems.append(f"{name} is unexpected")
        elif shape != list(expected[name]):
            problems.append(f"{name} is {shape}, not {list(expected[name])}")
        elif dtype not in _FLOATS.values():
            problems.append(f"{name} holds {dtype}, not floating-point numbers")
    return problems
