"""Tokens per second while answering, against transformers and against reading every weight once.

    python -m benchmarks.decode_throughput --model 135M --batch 1 8 --peers --json

A model is a shape of benchmarks.workload with random weights, or a directory. All contestants
answer greedily, the same tokens, one after another in one process; the first round is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.harness import markdown, ratio, spread, synchronize
from benchmarks.workload import SHAPES
from minimind.model.cache import KVCache
from minimind.model.pretrained import load
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig, generate_batch

PROMPT = 64  # tokens
BANDWIDTH_BYTES = 2**28  # what is read to find the memory's speed: far more than any cache

OURS = ["ours", "ours, compiled"]
PEER = "transformers"
CONTESTANTS = [*OURS, PEER]

Answer = Callable[[Tensor], list[list[int]]]


def step_bytes(model: Transformer) -> int:
    """Bytes of the weights that one step reads: all but the embedding, unless it is the head."""
    weights = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    untied = 0 if model.config.tie_word_embeddings else weights["model.embed_tokens.weight"]
    return sum(weights.values()) - untied


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a sum over a tensor that no cache holds."""
    data = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    return BANDWIDTH_BYTES / min(_seconds(lambda: data.sum(), device) for _ in range(5))


def measure(
    model: Transformer,
    batch: int,
    new_tokens: int,
    rounds: int,
    compiled: bool = False,
    peer: Any = None,
) -> dict[str, list[float]]:
    """One figure per round: tokens per second (`prefill`: of the prompt), bytes per second."""
    device, vocabulary = model.device, model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocabulary, (batch, PROMPT), generator=generator).to(device)
    answers: dict[str, Answer] = {"ours": partial(_ours, model, new_tokens)}
    if compiled:
        fast = copy.copy(model)  # the same weights
        fast.compile_decoding(batch)
        answers["ours, compiled"] = partial(_ours, fast, new_tokens)
    if peer is not None:
        answers[PEER] = partial(_theirs, peer, new_tokens)
    results: dict[str, list[float]] = {name: [] for name in (*answers, "prefill", "bandwidth")}
    expected: list[list[int]] = []
    for number in range(rounds + 1):
        for name, answer in answers.items():
            given: list[list[int]] = []
            seconds = _seconds(partial(_record, answer, prompts, given), device)
            expected = expected or given
            assert given == expected, f"{name} gave other tokens"
            if number:
                results[name].append(batch * new_tokens / seconds)
        if number:
            reading = _seconds(lambda: _prefill(model, prompts), device)
            results["prefill"].append(prompts.numel() / reading)
            results["bandwidth"].append(bandwidth(device))
    # Without the prefill: what a step of decoding alone takes.
    for name in OURS:
        results[f"decode: {name}"] = [
            batch * (new_tokens - 1) / (batch * new_tokens / whole - prompts.numel() / reading)
            for whole, reading in zip(results.get(name, ()), results["prefill"], strict=False)
        ]
    return results


def _record(answer: Answer, prompts: Tensor, given: list[list[int]]) -> None:
    given.extend(answer(prompts))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def _ours(model: Transformer, new_tokens: int, prompts: Tensor) -> list[list[int]]:
    return generate_batch(
        model, list(prompts), SampleConfig(temperature=0, max_new_tokens=new_tokens)
    )


def _theirs(peer: Any, new_tokens: int, prompts: Tensor) -> list[list[int]]:
    out = peer.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    answers: list[list[int]] = out[:, PROMPT:].tolist()
    return answers


@torch.inference_mode()
def _prefill(model: Transformer, prompts: Tensor) -> None:
    model.prefill(list(prompts), KVCache(model.config, len(prompts), PROMPT, prompts.device))


def _peer(model: Transformer) -> Any:
    """transformers' model of the same config, on the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(model.config.to_hf()), encoding="utf-8")
        config = AutoConfig.from_pretrained(name)
    peer = AutoModelForCausalLM.from_config(config, dtype=model.head_weight.dtype)
    weights = model.state_dict()
    weights.setdefault("lm_head.weight", model.head_weight)
    peer.load_state_dict(weights)
    peer.generation_config.eos_token_id = None
    return peer.to(model.device).eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="26M", help=f"a directory, or one of {list(SHAPES)}")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="measure ours compiled, too")
    parser.add_argument("--peers", action="store_true", help="measure transformers, too")
    parser.add_argument("--json", action="store_true", help="one line of JSON after the table")
    parser.add_argument("--plot", type=Path, help="where to draw a bar for each contestant")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.model in SHAPES:
        model = Transformer(SHAPES[options.model]).initialize().to(options.device)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tokens of ChatML that a base lacks: not used here
            model, _ = load(options.model, options.device)
    peer = _peer(model) if options.peers else None
    found = {
        batch: measure(model, batch, options.new_tokens, options.rounds, options.compiled, peer)
        for batch in options.batch
    }
    print(_table(found, step_bytes(model)))
    if options.json:
        facts = {"model": options.model, "new_tokens": options.new_tokens, "tokens_per_s": found}
        print(json.dumps(environment(options.device) | facts))
    if options.plot:
        _plot(found, options.plot)


def _table(found: dict[int, dict[str, list[float]]], size: int) -> str:
    beside = PEER if all(PEER in figures for figures in found.values()) else "ours"
    header = ["rows", "contestant", "prefill", "decode", "share of the bound", "whole"]
    header.append(f"× {beside}")
    lines = []
    for batch, figures in found.items():
        for name in CONTESTANTS:
            if name not in figures:
                continue
            decode = figures.get(f"decode: {name}", [])
            pairs = zip(decode, figures["bandwidth"], strict=False)
            share = [tokens / (batch * speed / size) for tokens, speed in pairs]
            lines.append(
                [
                    str(batch),
                    name,
                    spread(figures["prefill"]) if name in OURS else "",
                    spread(decode) if decode else "",
                    spread(share, ".0%") if share else "",
                    spread(figures[name], ".1f"),
                    ratio(figures[name], figures[beside]),
                ]
            )
    return markdown(header, lines)


def _plot(found: dict[int, dict[str, list[float]]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    for batch, figures in found.items():
        for offset, name in enumerate(name for name in CONTESTANTS if name in figures):
            axes.bar(f"{name}, {batch} rows", statistics.median(figures[name]), color=f"C{offset}")
    axes.set_ylabel("tokens per second")
    figure.savefig(path)


if __name__ == "__main__":
    main()
