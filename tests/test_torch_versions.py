"""Calls that differ between versions of PyTorch, as the older and as the newer one takes them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.attention.varlen

from minimind.documents import Documents
from minimind.model.torch_versions import varlen_attention

calls: list[dict[str, object]] = []


def attention_of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size):
    calls.append({"ends": (cu_seq_q, cu_seq_k, max_q, max_k), "window_size": window_size})
    return query


def attention_of_2_13(query, *rest, window_size, enable_gqa=False):
    attention_of_2_11(query, *rest, window_size=window_size)
    calls[-1]["enable_gqa"] = enable_gqa
    return query


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("function", [attention_of_2_11, attention_of_2_13])
def test_attention_names_shared_heads_where_they_can_be_named(
    function, kv_heads, monkeypatch
) -> None:
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", function)
    q, k = torch.zeros(5, 4, 8), torch.zeros(5, kv_heads, 8)
    documents = Documents.of([3, 2])
    assert varlen_attention(q, k, k, documents) is q
    ends = documents.cu_seqlens
    expected = {"ends": (ends, ends, 3, 3), "window_size": (-1, 0)}
    if function is attention_of_2_13:
        expected["enable_gqa"] = kv_heads != 4
    assert calls == [expected]


def test_this_version_takes_the_call() -> None:
    q = torch.zeros(3, 4, 8, dtype=torch.bfloat16)
    kernels_are_missing = (RuntimeError, NotImplementedError)  # CUDA's; not a TypeError
    with pytest.raises(kernels_are_missing):
        varlen_attention(q, q[:, :2], q[:, :2], Documents.of([3]))
