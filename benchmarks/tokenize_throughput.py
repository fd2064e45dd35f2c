"""How fast files become datasets, beside the bare tokenizer and, with --peers, transformers.

    python -m benchmarks.tokenize_throughput --peers
    python -m benchmarks.tokenize_throughput mine.jsonl --rows 50000 --plot tokenizing.png

    build          all of it: read, check, encode, mask, cut, lay out, write
    encode         messages in memory to ids and masks
    raw            `encode_batch_fast` of the tokenizers library over the rendered rows, one string
                   each, nothing done with what comes out
    transformers   `apply_chat_template` with `return_assistant_tokens_mask`

Without a FILE there are two workloads: the sample, repeated (short rows), and docstrings from the
standard library (long ones). Contestants have processes of their own and take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import tokenizers

import minimind
from benchmarks.environment import environment
from benchmarks.harness import Measures, alternate, markdown, ratio, serve, spread
from benchmarks.workload import docstring_conversations
from minimind.data.build import DataOptions, build_dataset
from minimind.data.conversation import Conversation
from minimind.data.masking import encode_rows
from minimind.data.reader import read_conversations
from minimind.tokenizer import Tokenizer

SAMPLE = Path("tests/data/conversations.jsonl")
BASE = Path(minimind.__file__).parent / "base"
BATCH = 1024  # rows per call, for all contestants
PEER_ROWS = 1000  # transformers is slow: its rate is taken over fewer rows
THREADS = (1, 2)
TRAINED = "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    + TRAINED
    + "{% endgeneration %}{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
)

Results = dict[str, dict[str, list[Measures]]]  # "short rows, 1 thread" -> contestant -> rounds


def main() -> None:
    options = parse()
    if options.serve:
        serve(contestant(options.serve, Path(options.files[0])))
        return
    names = ["build", "encode", "raw", *(["transformers"] if options.peers else [])]
    results: Results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for workload, file in workloads(options.files, options.rows, Path(scratch)).items():
            for threads in options.threads:
                commands = {
                    name: ["-m", "benchmarks.tokenize_throughput", "--serve", name, str(file)]
                    for name in names
                }
                case = f"{workload}, {threads} thread{'s' * (threads > 1)}"
                results[case] = alternate(commands, options.rounds, threads)
    print(table(results))
    if options.json:
        facts = {"rows": options.rows, "rounds": options.rounds, "batch": BATCH}
        print(json.dumps(environment() | facts | {"results": results}))
    if options.plot:
        plot(results, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--rows", type=int, default=20_000, help="of each workload's file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS)
    parser.add_argument("--peers", action="store_true", help="transformers, too")
    parser.add_argument("--json", action="store_true", help="also print a line of JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # what a child process does
    return parser.parse_args()


def workloads(files: Sequence[str], rows: int, folder: Path) -> dict[str, Path]:
    """Write files of `rows` rows; of docstrings, which are ten times as long, a tenth."""
    if files:
        sources = {Path(file).name: _lines(Path(file)) for file in files}
        counts = dict.fromkeys(sources, rows)
    else:
        long = docstring_conversations(max(1, rows // 10))
        sources = {
            "short rows": _lines(SAMPLE),
            "docstrings": [json.dumps(row, ensure_ascii=False) for row in long],
        }
        counts = {"short rows": rows, "docstrings": len(long)}
    written = {}
    for number, (name, lines) in enumerate(sources.items()):
        written[name] = folder / f"{number}.jsonl"
        text = "\n".join(islice(cycle(lines), counts[name])) + "\n"
        written[name].write_text(text, encoding="utf-8")
    return written


def contestant(name: str, file: Path) -> Callable[[], Measures]:
    """What does one round of a contestant's work and measures it."""
    if name == "build":
        return lambda: _timed_build(file)
    conversations = list(read_conversations(file))
    batches = [conversations[i : i + BATCH] for i in range(0, len(conversations), BATCH)]
    if name == "encode":
        tokenizer = Tokenizer.load(BASE)
        return lambda: _timed(len(conversations), lambda: _encode(batches, tokenizer))
    if name == "raw":
        raw = tokenizers.Tokenizer.from_file(str(BASE / "tokenizer.json"))
        texts = [[rendered(row) for row in batch] for batch in batches]
        return lambda: _timed(len(conversations), lambda: _raw(texts, raw))
    return _transformers(conversations[:PEER_ROWS])


def rendered(conversation: Conversation) -> str:
    """A row as one string, control tokens spelled."""
    return "".join(
        f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n"
        for message in conversation.messages
    )


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _timed_build(file: Path) -> Measures:
    tokenizer = Tokenizer.load(BASE)
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        options = DataOptions(max_length=2**20)  # all contestants encode whole rows
        _, report, _ = build_dataset([file], tokenizer, options, Path(cache))
        seconds = time.perf_counter() - start
    return _rates(report.rows, report.tokens, seconds)


def _timed(rows: int, work: Callable[[], int]) -> Measures:
    start = time.perf_counter()
    tokens = work()
    return _rates(rows, tokens, time.perf_counter() - start)


def _rates(rows: int, tokens: int, seconds: float) -> Measures:
    return {"rows_per_second": rows / seconds, "tokens_per_second": tokens / seconds}


def _encode(batches: list[list[Conversation]], tokenizer: Tokenizer) -> int:
    return sum(len(encode_rows(batch, tokenizer).input_ids) for batch in batches)


def _raw(texts: list[list[str]], raw: tokenizers.Tokenizer) -> int:
    done = (raw.encode_batch_fast(batch, add_special_tokens=False) for batch in texts)
    return sum(len(row) for rows in done for row in rows)


def _transformers(conversations: list[Conversation]) -> Callable[[], Measures]:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(BASE / "tokenizer.json"), chat_template=TEMPLATE
    )
    chats = [
        [{"role": message.role, "content": message.content} for message in row.messages]
        for row in conversations
    ]

    def work() -> int:
        encoded = tokenizer.apply_chat_template(
            chats, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert any(map(any, encoded["assistant_masks"]))
        return sum(map(len, encoded["input_ids"]))

    return lambda: _timed(len(chats), work)


def table(results: Results) -> str:
    """Medians and spreads, and each contestant's rows over the bare tokenizer's."""
    header = ["workload", "what", "rows/s", "tokens/s", "of raw"]
    lines = []
    for case, contestants in results.items():
        raw = [measures["rows_per_second"] for measures in contestants["raw"]]
        for name, rounds in contestants.items():
            rows = [measures["rows_per_second"] for measures in rounds]
            tokens = [measures["tokens_per_second"] for measures in rounds]
            lines.append([case, name, spread(rows), spread(tokens), ratio(rows, raw)])
    return markdown(header, lines)


def plot(results: Results, path: Path) -> None:
    """Bars of rows a second over the bare tokenizer's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    labels, heights = [], []
    for case, contestants in results.items():
        raw = statistics.median(measures["rows_per_second"] for measures in contestants["raw"])
        for name, rounds in contestants.items():
            if name != "raw":
                labels.append(f"{case}: {name}")
                rates = [measures["rows_per_second"] for measures in rounds]
                heights.append(statistics.median(rates) / raw)
    axes.barh(labels, heights)
    axes.axvline(0.85, color="grey", linestyle="--")
    axes.set_xlabel("rows/s over those of the bare tokenizer")
    figure.savefig(path)


if __name__ == "__main__":
    main()
