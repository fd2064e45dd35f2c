"""Train minimind's tokenizer from text files and JSONL. Knows no model and no conversation.

    corpus files -> passages -> 1 in 50 held back, the rest -> vocabulary of 8,192 -> tokenizer.json

The ids, in order:

    0 <|endoftext|>  1 <|im_start|>  2 <|im_end|>  3 <|pad|>  4.. <think> and the tool tags
    10.. <|reserved_0|> to <|reserved_21|>    32.. the 256 bytes    288.. merges, frequent first

Text is cut into pieces before any merge is learned (`PIECES`): each newline alone, each digit
alone. So a conversation encoded segment by segment and the same conversation encoded as one string
get the same ids, and a number is always spelled digit by digit.

    python tokenizer/train.py CORPUS/* --out tokenizer.json
    python tokenizer/train.py CORPUS/* --out tokenizer.model --backend sentencepiece

See README.md beside this file for the command that made ours, its sources and the figures.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# Before `tokenizers` is imported, which reads them once. One thread: this is a small job.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 8192
HOLD_BACK = 50  # one passage in this many is never trained on
PASSAGE = 1000  # characters; some sources put a whole book on one line

# A control token ends or frames a turn; a tag is text that a reader may want to see, so decoders
# that skip "special" tokens keep it (as Qwen3's do).
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
RESERVED = tuple(f"<|reserved_{i}|>" for i in range(32 - len(CONTROL) - len(TAGS)))
ADDED = CONTROL + TAGS + RESERVED

# Tried in this order at each position. No piece spans a newline and none looks past one, which is
# what makes encoding by segment and encoding as a whole agree.
PIECES = "|".join(
    (
        r"[\r\n]",
        r"\p{N}",
        r"['’](?:[sdmt]|ll|ve|re)(?![\p{L}\p{M}])",  # it's, we'll
        r" ?[\p{L}\p{M}]+",  # a word, its space in front; Hangul syllables and jamo alike
        r" ?[^\s\p{L}\p{M}\p{N}]+",  # punctuation, symbols, emoji
        r"[^\S\r\n]+(?!\S)",  # spaces up to the one that belongs to the next word
        r"[^\S\r\n]+",
    )
)
# As GPT-2 does, for comparison: newlines join spaces, digits join digits.
PLAIN_PIECES = (
    r"['’](?:[sdmt]|ll|ve|re)(?![\p{L}\p{M}])| ?[\p{L}\p{M}]+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
)


def read_passages(path: Path) -> Iterator[str]:
    """Yield a file's text in passages of a line, or of about `PASSAGE` characters.

    `.jsonl` rows are objects with a string at "text"; any other file is plain UTF-8 text.

    Raises:
        ValueError: a JSONL row has no text, or the file isn't UTF-8.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                text = line.removesuffix("\n")
                if path.suffix == ".jsonl":
                    text = _text_of(text, f"{path}:{number}")
                yield from _cut(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); convert it first") from None


def _text_of(row: str, place: str) -> str:
    try:
        text = json.loads(row)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f'{place}: no string at "text"; each row must be {{"text": "..."}}')
    return text


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > 2 * PASSAGE:
        end = text.find(" ", start + PASSAGE)
        if end < 0:
            break
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def join_lines(passages: Sequence[str], count: int = 20) -> list[str]:
    """Put passages on the lines of longer texts, for what has to see newlines."""
    return ["\n".join(passages[i : i + count]) for i in range(0, len(passages), count)]


def is_held_back(passage: str) -> bool:
    """Whether a passage is kept for measuring. Depends on its text alone, so copies agree."""
    return zlib.crc32(passage.encode()) % HOLD_BACK == 0


def split_corpus(
    files: Iterable[Path], shares: dict[str, float] | None = None
) -> tuple[list[str], list[str]]:
    """Read files into (training passages, held-back passages), each passage once.

    Args:
        files: text or JSONL files, in any order: they are read sorted by name.
        shares: file name -> the part of its training passages to use, 0 to 1; 1 if absent.
    """
    train: list[str] = []
    held: list[str] = []
    seen: set[str] = set()
    for path in sorted(files, key=lambda p: p.name):
        share = (shares or {}).get(path.name, 1.0)
        for passage in read_passages(path):
            if passage in seen:
                continue
            seen.add(passage)
            if is_held_back(passage):
                held.append(passage)
            elif zlib.crc32(passage.encode()) // HOLD_BACK % 1000 < share * 1000:
                train.append(passage)
    return train, held


def is_korean(text: str) -> bool:
    """Whether at least a fifth of the letters are Hangul (Korean technical prose has much code)."""
    hangul = sum("가" <= c <= "힣" or "ㄱ" <= c <= "ㆎ" for c in text)
    return hangul * 5 >= max(1, sum(c.isalpha() for c in text))


def train_bpe(
    passages: Sequence[str], vocab_size: int = VOCAB_SIZE, pieces: str = PIECES
) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2). Same text, same file.

    Raises:
        ValueError: the text is too little for that many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(token, normalized=False) for token in ADDED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        # Longest merge in bytes: rulers of dashes and boilerplate are no words.
        max_token_length=24,
    )
    tokenizer.train_from_iterator(passages, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise _too_little(vocab_size, f"it makes {tokenizer.get_vocab_size()}")
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:  # the trainer marks them all
        token["special"] = token["content"] not in TAGS
    return Tokenizer.from_str(json.dumps(data))


def train_sentencepiece(passages: Sequence[str], vocab_size: int = VOCAB_SIZE) -> bytes:
    """Train the same job with sentencepiece: BPE with byte fallback. Same text, same bytes.

    The control tokens have the ids they have in `train_bpe`, but the last is `<unk>`, which
    sentencepiece can't do without; with byte fallback no text comes to it. Digits stand alone.
    So does a newline, which sentencepiece trains without and encodes as the byte `<0x0A>`. Other
    than with `train_bpe`, characters come first and bytes only stand in for rare ones, and the
    space is `▁`: a text with that character comes back with a space.

    Raises:
        ValueError: the text is too little for that many pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(passages),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9995,
            # The text as it is, and nothing put before it.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            eos_id=ADDED.index(CONTROL[0]),
            eos_piece=CONTROL[0],
            pad_id=ADDED.index(CONTROL[3]),
            pad_piece=CONTROL[3],
            bos_id=-1,
            unk_id=len(ADDED) - 1,
            control_symbols=[t for t in ADDED[:-1] if t not in (CONTROL[0], CONTROL[3])],
            max_sentence_length=8 * PASSAGE,  # bytes; longer ones would be passed over
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _too_little(vocab_size, str(error)) from None
    return model.getvalue()


def _too_little(vocab_size: int, fact: str) -> ValueError:
    return ValueError(
        f"corpus: no {vocab_size} tokens can be made of it ({fact}); "
        "give another amount of text or another --vocab-size"
    )


def name_and_part(option: str) -> tuple[str, float]:
    """Read `korrv.ko.txt=0.3`."""
    name, part = option.rsplit("=", 1)
    return name, float(part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, train, write, and say what was done."""
    parser = argparse.ArgumentParser(description="Train minimind's tokenizer.")
    parser.add_argument("files", nargs="+", type=Path, help="text files, or .jsonl with a text")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    parser.add_argument(
        "--plain", action="store_true", help="for comparison: let newlines and digits join"
    )
    parser.add_argument("--backend", choices=("tokenizers", "sentencepiece"), default="tokenizers")
    parser.add_argument(
        "--share",
        action="append",
        type=name_and_part,
        default=[],
        metavar="NAME=PART",
        help="use only this part of a file, to balance the languages: korrv.ko.txt=0.3",
    )
    options = parser.parse_args(arguments)
    train, held = split_corpus(options.files, dict(options.share))
    for name, passages in (("train", train), ("held back", held)):
        korean = sum(len(p.encode()) for p in passages if is_korean(p))
        total = sum(len(p.encode()) for p in passages)
        print(f"{name}: {korean:,} bytes Korean, {total - korean:,} bytes English")
    if options.backend == "tokenizers":
        pieces = PLAIN_PIECES if options.plain else PIECES
        train_bpe(join_lines(train), options.vocab_size, pieces).save(str(options.out))
    else:
        options.out.write_bytes(train_sentencepiece(train, options.vocab_size))
    print(f"wrote {options.out}: {options.vocab_size:,} tokens")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(str(error))
