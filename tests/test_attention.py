from __future__ import annotations

import inspect
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.attention.varlen
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimind.documents import Documents
from minimind.model import attention
from minimind.model.attention import cached_attention, packed_attention

# T tokens, H query heads, K key/value heads, D head dimension.

VARLEN_ATTN = torch.nn.attention.varlen.varlen_attn


def draw(
    tokens: int, heads: int = 4, kv_heads: int = 2, head_dim: int = 8, seed: int = 0
) -> list[Tensor]:
    """Queries, keys and values that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, heads, head_dim)] + [(tokens, kv_heads, head_dim)] * 2
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def block_diagonal_attention(lengths: list[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The slow twin: one dense (T, T) mask, softmax written out, heads repeated."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (document[:, None] == document[None, :]).tril()  # (T, T)
    shared = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.size(-1))
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v)


def packed(lengths: list[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return packed_attention(q, k, v, Documents.of(lengths))


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    kv_heads=st.sampled_from([1, 2, 3]),
    shared=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([2, 6, 16]),
    seed=st.integers(0, 2**31),
)
def test_packed_attention_is_dense_attention_under_a_block_diagonal_mask(
    lengths, kv_heads, shared, head_dim, seed
) -> None:
    inputs = draw(sum(lengths), kv_heads * shared, kv_heads, head_dim, seed)
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(seed))
    fast, slow = packed(lengths, *inputs), block_diagonal_attention(lengths, *inputs)
    assert fast.shape == inputs[0].shape
    assert torch.allclose(fast, slow, rtol=0, atol=1e-5)
    # In float64, since how far float32 rounds gradients depends on the processor.
    inputs, upstream = [x.detach().double().requires_grad_() for x in inputs], upstream.double()
    fast, slow = packed(lengths, *inputs), block_diagonal_attention(lengths, *inputs)
    assert torch.allclose(fast, slow, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (fast, slow)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_editing_one_document_changes_the_others_by_exactly_nothing() -> None:
    lengths, edited = [5, 7, 4], slice(5, 12)
    inputs = draw(sum(lengths))
    others = [x.detach().clone() for x in inputs]
    for x in others:
        x[edited] = torch.randn(x[edited].shape, generator=torch.Generator().manual_seed(9)) * 100
        x.requires_grad_()
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    before, after = packed(lengths, *inputs), packed(lengths, *others)
    before_gradients = torch.autograd.grad(before, inputs, upstream)
    after_gradients = torch.autograd.grad(after, others, upstream)
    for one, other in [(before, after), *zip(before_gradients, after_gradients, strict=True)]:
        assert torch.equal(one[: edited.start], other[: edited.start])
        assert torch.equal(one[edited.stop :], other[edited.stop :])
        assert not torch.allclose(one[edited], other[edited])  # the edit itself is seen


def test_a_token_never_sees_a_later_one() -> None:
    inputs = draw(6)
    later = [torch.cat([x[:4], x[4:] + 1]) for x in inputs]
    assert torch.equal(packed([6], *inputs)[:4], packed([6], *later)[:4])


def test_a_document_of_one_token_returns_its_own_value() -> None:
    q, k, v = draw(3)
    out = packed([1, 1, 1], q, k, v)
    assert torch.allclose(out, v.repeat_interleave(2, dim=1))


def test_lengths_that_do_not_add_up_are_not_computed_with() -> None:
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        packed([2, 2], *draw(5))


def test_documents_count_their_ends() -> None:
    documents = Documents.of([3, 2, 4])
    assert documents.lengths == (3, 2, 4)
    assert documents.cu_seqlens.tolist() == [0, 3, 5, 9]
    assert documents.cu_seqlens.dtype == torch.int32
    assert documents.max_seqlen == 4


# One new token per row over a cache


def test_cached_attention_is_the_last_row_of_full_attention() -> None:
    q, k, v = (x.detach() for x in draw(7))
    full = packed([7], q, k, v)
    keys, values = (x.transpose(0, 1)[None] for x in (k, v))  # (1, K, 7, D)
    assert torch.allclose(cached_attention(q[-1:], keys, values, None), full[-1:], atol=1e-6)


def test_rows_with_shorter_caches_see_only_what_they_hold() -> None:
    lengths, room = [3, 7], 7
    rows = [[x.detach() for x in draw(length, seed=length)] for length in lengths]
    keys, values = torch.full((2, 2, 2, room, 8), torch.nan)
    for index, (_, k, v) in enumerate(rows):
        keys[index, :, : len(k)], values[index, :, : len(v)] = k.transpose(0, 1), v.transpose(0, 1)
    keys, values = keys.nan_to_num(9.0), values.nan_to_num(9.0)  # stale, but finite, as in a cache
    mask = torch.arange(room) < torch.tensor(lengths)[:, None]
    queries = torch.stack([q[-1] for q, _, _ in rows])
    out = cached_attention(queries, keys, values, mask[:, None, None, :])
    for index, (length, row) in enumerate(zip(lengths, rows, strict=True)):
        assert torch.allclose(out[index], packed([length], *row)[-1], atol=1e-6)


# The flash kernel, which is CUDA's: what it is asked, not what it answers


def fake_query(
    dtype: torch.dtype = torch.bfloat16, head_dim: int = 128, is_cuda: bool = True
) -> SimpleNamespace:
    return SimpleNamespace(
        is_cuda=is_cuda, dtype=dtype, device=torch.device("cuda"), size=lambda dim: head_dim
    )


@pytest.mark.parametrize(
    ("query", "capability", "built", "serves"),
    [
        (fake_query(), (8, 0), True, True),
        (fake_query(torch.float16), (9, 0), True, True),
        (fake_query(head_dim=256), (8, 0), True, True),
        (fake_query(torch.float32), (8, 0), True, False),
        (fake_query(head_dim=264), (8, 0), True, False),
        (fake_query(head_dim=20), (8, 0), True, False),  # not a multiple of 8
        (fake_query(), (7, 5), True, False),  # before Ampere
        (fake_query(), (8, 0), False, False),  # PyTorch built without it
        (fake_query(is_cuda=False), (8, 0), True, False),
    ],
)
def test_flash_is_asked_only_for_what_it_takes(
    query, capability, built, serves, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    assert attention.flash_serves(query) is serves


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3)])
def test_the_exact_call_of_varlen_attn(heads, kv_heads, dtype, monkeypatch) -> None:
    lengths = [3, 1, 5]
    calls = []

    def record(*args: object, **kwargs: object) -> Tensor:
        given = inspect.signature(VARLEN_ATTN).bind(*args, **kwargs).arguments
        calls.append(given)
        q, k, v = given["query"], given["key"], given["value"]
        return block_diagonal_attention(lengths, q.float(), k.float(), v.float()).to(dtype)

    record.__signature__ = inspect.signature(VARLEN_ATTN)  # of this version
    monkeypatch.setattr(attention, "flash_serves", lambda q: True)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", record)
    q, k, v = (x.detach().to(dtype) for x in draw(9, heads, kv_heads))
    documents = Documents.of(lengths)
    out = packed_attention(q, k, v, documents)
    (call,) = calls
    assert call["query"] is q
    assert call["key"] is k
    assert call["value"] is v
    assert q.dtype == k.dtype == v.dtype == dtype
    assert call["cu_seq_q"] is call["cu_seq_k"] is documents.cu_seqlens
    assert call["cu_seq_q"].dtype == torch.int32
    assert call["max_q"] == call["max_k"] == 5
    assert call["window_size"] == (-1, 0)
    assert call.get("enable_gqa", heads != kv_heads) is (heads != kv_heads)  # 2.11 has none
    assert out.shape == (9, heads, 8)
    # What it must return is what the documents' own attention gives.
    slow = attention._sdpa_by_document(q.float(), k.float(), v.float(), documents)
    assert torch.allclose(out.float(), slow, atol=0.02)


class Calls(TorchDispatchMode):
    """Remembers the arguments of each call of varlen attention's operator."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[dict[str, object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.torch_attn._varlen_attn.default:
            names = [argument.name for argument in func._schema.arguments]
            self.arguments.append(dict(zip(names, args, strict=False)) | (kwargs or {}))
        return func(*args, **(kwargs or {}))


def test_pytorch_takes_our_call_for_a_causal_one(monkeypatch) -> None:
    """On meta tensors PyTorch's own function runs without the kernel: its checks and its shapes."""
    monkeypatch.setattr(attention, "flash_serves", lambda q: True)
    lengths = [3, 1, 5]
    q, k, v = (x.detach().half().to("meta").requires_grad_() for x in draw(9))
    with Calls() as calls:
        out = packed_attention(q, k, v, Documents.of(lengths, "meta"))
    assert out.shape == q.shape
    assert out.dtype == torch.float16
    gradients = torch.autograd.grad(out, (q, k, v), torch.empty_like(out))
    assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape]
    (call,) = calls.arguments
    assert call["is_causal"] is True
    assert call.get("enable_gqa", True) is True  # 2.11 has none
    assert call["max_q"] == call["max_k"] == 5
