"""The figures of the base's model card: bits per byte beside others', and unedited continuations.

    python -m benchmarks.base_card minimind/base corpus/*.jsonl \\
        --smollm2 PATH --earlier PATH --max-length 512

FILES and --hold-back are those of the pretraining: what was held back there is scored here, script
by script, in windows of --max-length tokens of each model's own; a document's first token is
predicted from <|endoftext|>. The 5-gram model (knlm: modified Kneser-Ney, Chen & Goodman 1999)
reads the same tokens of the same training documents, each once, and every id of the vocabulary once
more, so that none is impossible; a document is its sentence.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.environment import environment
from minimind.data.corpus import build_corpus, scripts_of
from minimind.data.dataset import Dataset
from minimind.data.documents import encode_documents
from minimind.evaluation import score_documents
from minimind.model.pretrained import load
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig, generate_batch
from minimind.tokenizer import Tokenizer

ORDER, WORD_BYTES = 5, 4  # of the n-grams; of an id inside knlm
CONTINUED, PROMPT_TOKENS = 10, 8
SAMPLING = SampleConfig(max_new_tokens=60, seed=0)
ENGLISH = "latin"
Documents = dict[str, list[str]]


def documents_of(dataset: Dataset) -> Iterator[list[int]]:
    """Each document's ids, without what begins and ends it."""
    for _, windows in groupby(range(len(dataset)), dataset.table["key"].__getitem__):
        yield [id for window in windows for id in dataset[window].input_ids[1:]][:-1]


def held_back_texts(dataset: Dataset, tokenizer: Tokenizer, most: int) -> Documents:
    """Held-back documents by script, at most so many of each: those with the smallest hashes."""
    documents = zip(documents_of(dataset), _first_of_each(dataset), strict=True)
    scripts = scripts_of(dataset, tokenizer)
    found = defaultdict(list)
    for ids, row in documents:
        found[scripts[row]].append((int(dataset.table["key"][row]), tokenizer.decode(ids)))
    return {script: [text for _, text in sorted(rows)[:most]] for script, rows in found.items()}


def _first_of_each(dataset: Dataset) -> list[int]:
    groups = groupby(range(len(dataset)), dataset.table["key"].__getitem__)
    return [next(windows) for _, windows in groups]


def model_bits(
    model: Transformer, tokenizer: Tokenizer, texts: list[str], max_length: int
) -> float:
    """Bits per byte of a model on texts."""
    values = score_documents(
        model, tokenizer, encode_documents(texts, tokenizer, max_length), ""
    ).values
    return values["text_bits"] / values["text_bytes"]


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
    """Markdown rows: how the first texts begin, and how the model goes on, unedited."""
    end = tokenizer.encode_control("<|endoftext|>")
    prompts = [[end, *ids[:PROMPT_TOKENS]] for ids in tokenizer.encode_batch(texts[:CONTINUED])]
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
    parser.add_argument("--hold-back", type=float, default=0.01)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--documents", type=int, default=400, help="scored of each script, at most")
    parser.add_argument("--no-ngrams", action="store_true")
    options = parser.parse_args(argv)
    model, tokenizer = load(options.base)
    windows, _ = build_corpus(options.files, tokenizer, options.max_length)
    training, held_back = windows.split(options.hold_back)
    texts = held_back_texts(held_back, tokenizer, options.documents)
    if not texts:
        sys.exit("error: nothing is held back; raise --hold-back")
    found: dict[str, dict[str, float]] = {}

    def note(name: str, bits: dict[str, float], began: float) -> None:
        found[name] = bits
        cells = [f"{bits[script]:.4f}" if script in bits else "-" for script in sorted(texts)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)

    counts = (
        f"{script} ({len(texts[script])} documents, "
        f"{sum(len(text.encode()) for text in texts[script]):,} bytes)"
        for script in sorted(texts)
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
        scripts = [s for s in sorted(texts) if name != "SmolLM2-135M" or s == ENGLISH]
        note(name, {s: model_bits(other, own, texts[s], length) for s in scripts}, began)
    if not options.no_ngrams:
        began = time.perf_counter()
        ngrams = NGrams(tqdm(documents_of(training), desc="counting", disable=None), tokenizer)
        note(f"{ORDER}-gram", {s: ngrams.bits_per_byte(texts[s]) for s in sorted(texts)}, began)
    for script in sorted(texts):
        print(f"\n| {script}: held-back beginning | continuation |\n|--|--|")
        print("\n".join(continuations(model, tokenizer, texts[script])))
    print(json.dumps(environment() | {"bits_per_byte": found, "sampling": str(SAMPLING)}))


if __name__ == "__main__":
    with torch.no_grad():
        main()
