from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import decode_throughput
from minimind.model.transformer import Transformer
from tests.test_transformer import QWEN3


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_each_weight_once_and_of_the_vocabulary_only_the_head(tied) -> None:
    config = replace(QWEN3, tie_word_embeddings=tied)
    layer = (
        32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48 + 2 * 32 + 2 * 16
    )  # q, k, v, o, MLP, norms
    expected = 4 * (3 * layer + 32 + 97 * 32)
    assert decode_throughput.step_bytes(Transformer(config)) == expected


def test_it_runs_against_transformers_and_both_say_the_same(monkeypatch, capsys) -> None:
    monkeypatch.setitem(decode_throughput.SHAPES, "tiny", QWEN3)
    monkeypatch.setattr(decode_throughput, "BANDWIDTH_BYTES", 2**16)
    decode_throughput.main(
        [
            "--model",
            "tiny",
            "--batch",
            "2",
            "--new-tokens",
            "4",
            "--rounds",
            "1",
            "--peers",
            "--json",
        ]
    )
    out = capsys.readouterr().out
    assert "| 2 | ours |" in out
    assert "| 2 | transformers |" in out
    assert '"transformers": [' in out
