"""Read and write a model directory in Hugging Face's layout.

    config.json                 ModelConfig, token ids, dtype
    model.safetensors           the weights (or shards that model.safetensors.index.json lists)
    tokenizer.json, ...         the tokenizer's own files
    tokenizer_config.json       also its own, with our chat template put in
    chat_template.jinja         our chat template, where newer readers look
    generation_config.json      where to stop
    minimind.json               the system message that the model was trained with, if any; its run

Reading is strict: every weight that the config asks for, in its shape, and no other.
"""

from __future__ import annotations

import dataclasses
import filecmp
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from minimind.atomic_io import sync, write_tensors
from minimind.data.template import chat_template
from minimind.model.config import ModelConfig
from minimind.model.families import FAMILIES
from minimind.model.transformer import Transformer
from minimind.model.weights import (
    EMBEDDING,
    HEAD,
    INDEX,
    PICKLES,
    WEIGHTS,
    config_of_state_dict,
    open_state_dict,
    open_weights,
    plain_name,
    read_weights,
)
from minimind.tokenizer import Tokenizer
from minimind.tokenizer.files import parse_object, refuse_foreign_links

BASE = Path(__file__).parents[1] / "base"

_ADAPTER = "adapter_config.json"
OURS = "minimind.json"  # what other readers have no place for
# All that `save` may write.
MODEL_FILES = (
    *("config.json", WEIGHTS, "generation_config.json", "chat_template.jinja", OURS),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt"),
)

# What is fetched of a hub repository: neither pickles nor copies in other formats.
_FETCHED = ["*.json", "model*.safetensors", "*.model", "merges.txt", "*.jinja"]


def load(
    path_or_name: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: str | Path | None = None,
) -> tuple[Transformer, Tokenizer]:
    """Load and return a pretrained model, on `device` and in `dtype`, and its tokenizer.

        load()                                    the base that is part of this package
        load("runs/sft-1")                        a directory
        load("HuggingFaceTB/SmolLM2-135M")        a hub name: fetched into the cache
        load("full_sft_768.pth", tokenizer="minimind/model")     a state dict, as MiniMind saves it

    Tokens of ChatML that the base lacks are added, each with the mean of the existing rows, and so
    is a row for a padding token that has none; a UserWarning says so. Another names the keys of
    config.json that are not read. A hub name's newest version is fetched; with HF_HUB_OFFLINE=1
    the cached one is used. Of pickles (a .pth, or a pytorch_model.bin where there are no other
    weights) plain state dicts alone are read, and no code in them is ever run. What a .pth's shapes
    don't tell stands in a config.json beside it, or is MiniMind's default; a UserWarning names it.

    Args:
        path_or_name: None, a directory, a hub name or a .pth.
        tokenizer: the folder of a .pth's tokenizer; None is the folder that the .pth is in.

    Raises:
        FileNotFoundError: no such directory or hub name, or a file is missing there.
        ValueError: the config asks for what `Transformer` can't do, or the weights don't fit it, or
            a pickle isn't a plain state dict, or `tokenizer` is given with a directory.
        RuntimeError, AssertionError: PyTorch can't use `device`.
    """
    place = _locate(path_or_name)
    _tell_of_an_adapter(place)
    stored = open_state_dict(place) if place.is_file() else None
    config = _read_config(place) if stored is None else config_of_state_dict(place, stored)
    if FAMILIES[config.model_type].even_heads and config.hidden_size % config.num_attention_heads:
        warnings.warn(
            f"{place}: hidden_size {config.hidden_size} is not a multiple of "
            f"{config.num_attention_heads} heads: it loads and trains here, but transformers 5 "
            "refuses such a model, this one and the one that is saved",
            stacklevel=2,
        )
    found = _load_tokenizer(place, tokenizer)
    stored = open_weights(place) if stored is None else stored
    weights = read_weights(stored, config, place, torch.device(device), dtype)
    config = _fit_vocabulary(config, weights, found, place)
    with torch.device("meta"):  # shapes only: the weights read above become the parameters
        model = Transformer(config)
    model.load_state_dict(weights, assign=True)
    return model, found


def load_tokenizer(
    path_or_name: str | Path | None = None, tokenizer: str | Path | None = None
) -> Tokenizer:
    """The tokenizer that `load` returns for the same arguments, before tokens are added."""
    return _load_tokenizer(_locate(path_or_name), tokenizer)


def _load_tokenizer(place: Path, folder: str | Path | None) -> Tokenizer:
    if place.is_dir():
        if folder is not None:
            raise ValueError(f"{place}: has its own tokenizer; leave out --tokenizer {folder}")
        return Tokenizer.load(place)
    if folder is not None:
        return Tokenizer.load(_locate(folder))
    try:
        return Tokenizer.load(place.parent)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{place}: no tokenizer beside it; give its folder with --tokenizer FOLDER (of "
            "MiniMind's own files, its folder model/)"
        ) from None


def is_state_dict(path_or_name: str | Path | None) -> bool:
    """Whether it is a file that `load` reads as a state dict, which needs a tokenizer's folder."""
    path = Path(path_or_name or "")
    return path.suffix in PICKLES and path.is_file()


def read_config(path_or_name: str | Path | None = None) -> ModelConfig | None:
    """A base's config; None where its config.json is missing or refused: `load` says why."""
    place = _locate(path_or_name)
    with suppress(OSError, ValueError):
        if place.is_file():
            return config_of_state_dict(place, open_state_dict(place))
        return _read_config(place)
    return None


def _read_config(directory: Path) -> ModelConfig:
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no config.json; give a directory that holds a model")
    refuse_foreign_links([path])
    return ModelConfig.from_hf(parse_object(path.read_bytes(), path), str(path))


def load_system_message(path_or_name: str | Path | None = None) -> str | None:
    """The system message that a model was trained with, if it was saved with one."""
    path = _locate(path_or_name) / OURS  # no such path where it is a state dict's
    system = parse_object(path.read_bytes(), path).get("system_message") if path.is_file() else None
    return system if isinstance(system, str) and system else None


def save(
    directory: str | Path,
    model: Transformer,
    tokenizer: Tokenizer,
    dtype: torch.dtype | None = None,
    system: str | None = None,
    run: Mapping[str, object] | None = None,
) -> None:
    """Write a directory in Hugging Face's layout: `load` and transformers can read it unchanged.

    The files are written to a folder inside the directory, synced, and moved to their places at
    the end. If saving is cut off at any point, the directory holds the old model or the new one, or
    (where the old one was another model) no weights; never a mix of two. The chat template is ours;
    where the base's own differs, a UserWarning says that it is replaced.

    Args:
        directory: is made if absent; what a model directory consists of is replaced in it.
        model: may be wrapped by `torch.compile`.
        tokenizer: the one it was trained with.
        dtype: of the weights on disk; None keeps the model's.
        system: the system message of its training rows, recorded in minimind.json, which other
            readers ignore; the chat template doesn't insert it.
        run: what else minimind.json says, of the run that the weights are of.

    Raises:
        ValueError: the tokenizer has ids that the model has no rows for.
        FileExistsError: the directory holds a sharded model, which one file can't replace.
        OSError: the disk is full, or fails.
    """
    directory = Path(directory)
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} ids and the model rows for "
            f"{config.vocab_size}; save the tokenizer that was loaded with the model"
        )
    if (directory / INDEX).exists():
        raise FileExistsError(
            f"{directory}: holds a sharded model, and some readers would still read its shards; "
            "save to another directory"
        )
    frames = [(False, False), (True, False), (True, True)]
    ours = [_chat_template(tokenizer.with_framing(*frame)) for frame in frames]
    if tokenizer.base_chat_template not in (None, *ours):
        warnings.warn(
            f"{directory}: the base's own chat template is replaced; the model is trained with "
            "plain ChatML, without a system prompt that no one asked for",
            stacklevel=2,
        )
    directory.mkdir(parents=True, exist_ok=True)
    for unfinished in directory.glob(".saving-*"):  # by a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    dtype = dtype or model.head_weight.dtype
    dtype_name = str(dtype).removeprefix("torch.")
    token_ids = {  # named even where null: Llama's defaults in transformers are 1 and 2
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    dtypes = {"torch_dtype": dtype_name, "dtype": dtype_name}  # before transformers 4.56, and since
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as name:
        staging = Path(name)
        save_tokenizer(staging, tokenizer)
        _write_json(staging / "config.json", config.to_hf() | token_ids | dtypes)
        _write_json(staging / OURS, {"system_message": system, **(run or {})})
        weights = {
            plain_name(key): value.detach().to("cpu", dtype).contiguous()
            for key, value in model.state_dict().items()
        }
        # One file whatever its size: every reader maps it, and a tied head was never in the dict.
        write_tensors(staging / WEIGHTS, weights, {"format": "pt"})
        shutil.copymode(staging / "config.json", staging / WEIGHTS)  # safetensors says 0600
        _move(staging, directory)


def save_tokenizer(directory: str | Path, tokenizer: Tokenizer) -> None:
    """Write what a model directory holds besides the model."""
    directory = Path(directory)
    tokenizer.save(directory)
    template = _chat_template(tokenizer)
    (directory / "chat_template.jinja").write_bytes(template.encode())  # for transformers 5
    path = directory / "tokenizer_config.json"  # for transformers 4 and llama.cpp's converter
    _write_json(path, parse_object(path.read_bytes(), path) | {"chat_template": template})


def _chat_template(tokenizer: Tokenizer) -> str:
    template = chat_template(tokenizer.framed, tokenizer.thinking)
    return ("{{ bos_token }}" if tokenizer.bos_id is not None else "") + template


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_bytes((json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def _move(staging: Path, directory: Path) -> None:
    """Move new files over the old ones; within a run only the weights differ, one rename."""
    weights = directory / WEIGHTS
    changed = []
    for file in staging.iterdir():
        sync(file)
        old = directory / file.name
        if file.name != WEIGHTS and not (old.exists() and filecmp.cmp(file, old, shallow=False)):
            changed.append(file)
    if changed and weights.exists():  # another model's: they must not be read with our tokenizer
        weights.unlink()
        sync(directory)
    for file in changed:
        os.replace(file, directory / file.name)
    sync(directory)  # the weights come last: a directory that has them has the rest
    os.replace(staging / WEIGHTS, weights)
    sync(directory)


def _locate(path_or_name: str | Path | None) -> Path:
    if path_or_name is None:
        return BASE
    name, path = str(path_or_name), Path(path_or_name)
    if path.is_dir() or is_state_dict(path):
        return path
    if path.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        fact = "is a file" if path.exists() else "no such directory"
        raise FileNotFoundError(
            f"{name}: {fact}; give a model directory or a hub name like org/model"
        )
    from huggingface_hub import snapshot_download  # slow to import, and seldom needed

    try:
        # The newest version; offline (HF_HUB_OFFLINE=1) the cache's.
        return Path(snapshot_download(name, allow_patterns=_FETCHED))
    except (OSError, ValueError) as error:  # all of the hub's errors are one of the two
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise FileNotFoundError(
            f"{name}: no such directory, and no such model on the hub or in its cache "
            f"({lines[0]}); check the name and the connection"
        ) from error


def _tell_of_an_adapter(directory: Path) -> None:
    """A PEFT adapter isn't a model: without one beside it, it is an error."""
    path = directory / _ADAPTER
    if not path.is_file():
        return
    base = parse_object(path.read_bytes(), path).get("base_model_name_or_path")
    if (directory / WEIGHTS).is_file() or (directory / INDEX).is_file():
        warnings.warn(
            f"{path}: a PEFT adapter (of {base!r:.200}) lies beside the model's weights, and is "
            "not read; move it away if its changes are in the weights, else merge it first",
            stacklevel=3,
        )
        return
    raise FileNotFoundError(
        f"{directory}: a PEFT adapter of {base!r:.200}, not a model; merge it into its base "
        "(PEFT's merge_and_unload, then save_pretrained of the model and of its tokenizer) and "
        "give that folder"
    )


def _fit_vocabulary(
    config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer, directory: Path
) -> ModelConfig:
    """Add rows for the ChatML tokens that the tokenizer had to add, and for padding; warn of it."""
    ids = {tokenizer.encode_control(token) for token in tokenizer.added_chatml}
    new = range(config.vocab_size, tokenizer.vocab_size)
    names = {id: tokenizer.decode([id]) for id in new if id in tokenizer.control_ids}
    padding = {id: name for id, name in names.items() if "pad" in name.lower()}
    if not (ids | padding.keys()).issuperset(new):
        raise ValueError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size - len(ids & set(new))} ids and "
            f"the model rows for {config.vocab_size}; use the two of one model"
        )
    for name in (EMBEDDING, HEAD):
        if new and name in weights:
            rows = weights[name]
            mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
            weights[name] = torch.cat([rows, mean.expand(len(new), -1)])
    if padding:
        listed = " and ".join(f"{token} has the id {id}" for id, token in padding.items())
        warnings.warn(
            f"{directory}: {listed}, and the model rows for {config.vocab_size} ids; it gets a "
            "row, the mean of the others (padding needs none of its own)",
            stacklevel=3,
        )
    if tokenizer.notice:
        count = len(ids.intersection(new))
        grown = f", with {count} new rows, each the mean of the old ones" if count else ""
        warnings.warn(f"{tokenizer.notice}{grown}. They mean nothing until trained", stacklevel=3)
    return dataclasses.replace(config, vocab_size=config.vocab_size + len(new))
