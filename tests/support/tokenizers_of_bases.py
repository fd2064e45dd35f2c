"""Small tokenizers as bases have them, made on the spot. Knows no test."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

_WORDS = (
    "the quick brown fox jumps over a lazy dog and then it thinks of what to say",
    "안녕하세요 오늘 날씨가 참 좋네요 산책하러 나갈까요 아니면 집에서 책을 읽을까요",
    "user assistant system tool hello world 1 + 1 = 2, 3.14! what? (yes) [no] {x}",
)
LINES = [
    " ".join([*(line.split())[shift:], *(line.split())[:shift]])
    for line in _WORDS
    for shift in range(len(line.split()))
]


def write_llama3(directory: Path) -> Path:
    """Llama 3's kind: byte-level, whole words first, a BOS, spare slots, added after the rest.

    "think" and "hello" are added tokens (not marked special) that are also words of the vocabulary,
    which `ignore_merges` finds whole.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=500,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    spare = [f"<|reserved_special_token_{i}|>" for i in range(4)]
    tokenizer.add_special_tokens([*special, *spare])
    tokenizer.add_tokens(["<think>", AddedToken("hello", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A $B",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    assert len(tokenizer.encode("fox").ids) == 2  # whole, after the BOS
    _write(
        directory,
        tokenizer,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
            "clean_up_tokenization_spaces": False,
        },
    )
    return directory


def write_llama2_json(directory: Path, tokenizer_class: str = "LlamaTokenizer") -> Path:
    """Llama 2's kind as a tokenizer.json: sentencepiece's "▁", byte fallback, a BOS, no ChatML."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", *bytes_]
    )
    tokenizer.train_from_iterator([word for line in LINES for word in line.split()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]  # bytes are no added tokens
    _write(
        directory,
        Tokenizer.from_str(json.dumps(data)),
        {
            "tokenizer_class": tokenizer_class,
            "legacy": True,
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
            "clean_up_tokenization_spaces": False,
        },
    )
    return directory


def write_sentencepiece(
    directory: Path,
    model_type: str = "bpe",
    byte_fallback: bool = True,
    vocab_size: int = 520,
    user_defined: Sequence[str] = ("<tool>",),
    remove_spaces: bool = False,
) -> Path:
    """Llama 2's own file: a sentencepiece .model, with `<tool>` as a user-defined symbol."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 3),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        remove_extra_whitespaces=remove_spaces,
        user_defined_symbols=list(user_defined),
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory


def write_unigram(directory: Path) -> Path:
    """A Unigram tokenizer.json whose control tokens are pieces of the model too, as T5's are."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<|im_start|>", 0.0), ("<|im_end|>", 0.0)]
    letters = sorted({c for line in LINES for c in line.replace(" ", "▁")} | set("<|>_/▁"))
    tokenizer = Tokenizer(models.Unigram([*pieces, *((c, -5.0) for c in letters)], unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens([name for name, _ in pieces])
    _write(directory, tokenizer, None)
    return directory


def edit_json(path: Path, **changes: object) -> None:
    """Change top-level keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text("utf-8")), **changes}
    kept = {key: value for key, value in values.items() if value is not None}
    path.write_text(json.dumps(kept, ensure_ascii=False), "utf-8")


def _write(directory: Path, tokenizer: Tokenizer, config: dict[str, object] | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
