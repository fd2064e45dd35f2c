"""The figures of the base's model card: bits per byte beside others', and unedited continuations.

    python -m benchmarks.base_card minimind/base corpus/*.jsonl \\
        --val-fraction 0.003 --smollm2 PATH --earlier PATH

FILES and --val-fraction are those of the pretraining: what was held back there is scored here, the
small world (files called world.*) and the rest apart, script by script, in windows of --max-length
tokens of each model's own; a document's first token is predicted from <|endoftext|>. The 5-gram
model (knlm: modified Kneser-Ney, Chen & Goodman 1999) reads the same tokens of the same training
documents, each once, and every id of the vocabulary once more, so that none is impossible; a
document is its sentence.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.environment import environment
from benchmarks.world_share import KINDS, kinds_of
from minimind.data.dataset import Dataset
from minimind.data.plain_text import encode_documents
from minimind.data.selection import split_by_prompt
from minimind.evaluate.evaluation import score_documents
from minimind.evaluate.figures import figures
from minimind.model.pretrained import load
from minimind.model.transformer import Transformer
from minimind.pretrain.corpus import build_corpus, documents_of
from minimind.sampler import SampleConfig, generate_batch
from minimind.tokenizer import Tokenizer

ORDER, WORD_BYTES = 5, 4  # of the n-grams; of an id inside knlm
CONTINUED, PROMPT_TOKENS = 10, 8
SAMPLING = SampleConfig(max_new_tokens=60, seed=0)
SCRIPTS = ("hangul", "latin")  # of Korean and of English
Documents = dict[str, list[str]]


def held_back_texts(dataset: Dataset, tokenizer: Tokenizer, files: Sequence[str]) -> Documents:
    """Held-back documents in the order of their hashes, by what they are: "rest hangul"."""
    kinds, keys = kinds_of(dataset, tokenizer, files), dataset.column("key")
    documents = sorted(
        (int(keys[rows[0]]), kinds[rows[0]], tokenizer.decode(ids))
        for rows, ids in documents_of(dataset)
    )
    found: Documents = defaultdict(list)
    for _, kind, text in documents:
        found[kind].append(text)
    return {kind: found[kind] for kind in KINDS if kind in found}


def model_bits(
    model: Transformer, tokenizer: Tokenizer, texts: list[str], max_length: int
) -> float:
    """Bits per byte of a model on texts."""
    windows = encode_documents(texts, tokenizer, max_length)
    return figures([score_documents(model, tokenizer, windows, "")])["bits_per_byte"]


class NGrams:
    """A 5-gram model of token ids with modified Kneser-Ney smoothing."""

    def __init__(self, training: Iterator[list[int]], tokenizer: Tokenizer) -> None:
        import knlm

        self._tokenizer = tokenizer
        self._model = knlm.KneserNey(ORDER, WORD_BYTES)
        self._model.train([str(id) for id in range(tokenizer.vocab_size)])
        for ids in training:
            self._model.train([str(id) for id in ids])
        self._model.optimize()

    def bits_per_byte(self, texts: list[str]) -> float:
        nats = 0.0
        for ids in self._tokenizer.encode_batch(texts):
            nats -= sum(self._model.evaluateEachWord([str(id) for id in ids]))
        if math.isnan(nats):
            raise ValueError("too little text to find the 5-gram model's discounts; use more")
        return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def continuations(model: Transformer, tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """Markdown rows: how texts begin, and how the model goes on, unedited."""
    end = tokenizer.encode_control("<|endoftext|>")
    prompts = [[end, *ids[:PROMPT_TOKENS]] for ids in tokenizer.encode_batch(texts)]
    rows = []
    for prompt, ids in zip(prompts, generate_batch(model, prompts, SAMPLING, [end]), strict=True):
        shown = [tokenizer.decode(part, skip_control=True) for part in (prompt, ids)]
        cells = [text.replace("|", "\\|").replace("\n", "<br>") for text in shown]
        ended = " ∎" if ids[-1] == end else " …"
        rows.append(f"| {cells[0]} | {cells[1]}{ended} |")
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("base", help="folder of the model")
    parser.add_argument("files", nargs="+", help="what it was pretrained on")
    parser.add_argument("--earlier", type=Path, help="folder of an earlier base")
    parser.add_argument("--earlier-length", type=int, help="its windows; default --max-length")
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M; English alone")
    parser.add_argument("--val-fraction", type=float, required=True, help="as in the pretraining")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--documents", type=int, default=400, help="scored of each kind, at most")
    parser.add_argument("--no-ngrams", action="store_true")
    options = parser.parse_args(argv)
    model, tokenizer = load(options.base)
    windows, _ = build_corpus(options.files, tokenizer, options.max_length)
    training, held_back = split_by_prompt(windows, options.val_fraction)
    all_texts = held_back_texts(held_back, tokenizer, options.files)
    if not all_texts:
        sys.exit("error: nothing is held back; raise --val-fraction")
    texts = {kind: found[: options.documents] for kind, found in all_texts.items()}
    found: dict[str, dict[str, float]] = {}

    def note(name: str, bits: dict[str, float], began: float) -> None:
        found[name] = bits
        cells = [f"{bits[kind]:.4f}" if kind in bits else "-" for kind in texts]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)

    counts = (
        f"{kind} ({len(chosen)} documents, {sum(len(text.encode()) for text in chosen):,} bytes)"
        for kind, chosen in texts.items()
    )
    print(f"| bits per byte | {' | '.join(counts)} |\n|--|{'--|' * len(texts)}")
    others = {"base": (options.base, options.max_length)}
    if options.earlier:
        others["earlier base"] = options.earlier, options.earlier_length or options.max_length
    if options.smollm2:
        others["SmolLM2-135M"] = options.smollm2, options.max_length
    for name, (folder, length) in others.items():
        began = time.perf_counter()
        other, own = load(folder)
        scored = [kind for kind in texts if name != "SmolLM2-135M" or kind.endswith("latin")]
        note(name, {k: model_bits(other, own, texts[k], length) for k in scored}, began)
    if not options.no_ngrams:
        began = time.perf_counter()
        counted = (ids for _, ids in documents_of(training))
        ngrams = NGrams(tqdm(counted, desc="counting", disable=None), tokenizer)
        note(f"{ORDER}-gram", {k: ngrams.bits_per_byte(texts[k]) for k in texts}, began)
    for script in SCRIPTS:
        of_each = [found for kind, found in all_texts.items() if kind.endswith(script)]
        chosen = [text for found in of_each for text in found[: CONTINUED // len(of_each)]]
        print(f"\n| {script}: held-back beginning | continuation |\n|--|--|")
        print("\n".join(continuations(model, tokenizer, chosen)))
    print(json.dumps(environment() | {"bits_per_byte": found, "sampling": str(SAMPLING)}))


if __name__ == "__main__":
    with torch.no_grad():
        main()
