"""Conversations and model shapes to measure with; nothing is downloaded.

Questions are made from the names and signatures of Python's own standard library, answers are its
docstrings: real text of realistic lengths, on every machine.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from minimind.data.conversation import parse_conversation
from minimind.data.dataset import Dataset
from minimind.data.masking import encode_rows, truncate
from minimind.model.config import ModelConfig
from minimind.tokenizer import Tokenizer

MAX_LENGTH = 512  # tokens of a row
SHORTEST = 110  # characters of an answer


def _shape(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int
) -> ModelConfig:
    return ModelConfig(
        model_type="llama",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


SHAPES = {
    "tiny": _shape(6400, 64, 128, 2, 2, 1),  # to see that a benchmark runs, and for nothing else
    "5M": _shape(6400, 256, 704, 8, 4, 2),
    "26M": _shape(6400, 512, 1408, 8, 8, 2),
    "64M": _shape(6400, 768, 2432, 8, 8, 4),  # MiniMind's, of which times on GPUs are published
    "135M": _shape(49152, 576, 1536, 30, 9, 3),  # SmolLM2's
    "0.6B": replace(  # Qwen3's
        _shape(151936, 1024, 3072, 28, 16, 8), model_type="qwen3", head_dim=128, qk_norm=True
    ),
}


def docstring_conversations(count: int = 512, seed: int = 0) -> list[dict[str, object]]:
    """`count` rows of {"messages": ...}, the same for one version of Python and one seed."""
    rows = list(_questions_and_answers())
    random.Random(seed).shuffle(rows)
    rows = (rows * (count // len(rows) + 1))[:count]
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in rows
    ]


def docstring_dataset(tokenizer: Tokenizer, count: int = 512, vocabulary: int = 0) -> Dataset:
    """The same rows as tokens, at most `MAX_LENGTH` each.

    Ids that a smaller `vocabulary` has no row for are folded into it: time doesn't depend on them.
    """
    conversations = [parse_conversation(row) for row in docstring_conversations(count)]
    examples = encode_rows(conversations, tokenizer)
    dataset = Dataset.from_examples(
        truncate(row, MAX_LENGTH, tokenizer, "tokens") for row in examples
    )
    if vocabulary:
        dataset.input_ids %= vocabulary
    return dataset


def _questions_and_answers() -> Iterator[tuple[str, str]]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
            prefix = f"{path.stem}.{owner.name}" if isinstance(owner, ast.ClassDef) else path.stem
            for node in owner.body:
                if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    continue
                answer = ast.get_docstring(node)
                if answer and len(answer) >= SHORTEST:
                    call = (
                        f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef) else ""
                    )
                    yield f"In Python, what is `{prefix}.{node.name}{call}` for?", answer
