"""Turn logits into tokens, and tokens into answers.

    prompt ids --prefill--> logits --choose--> token --decode--> logits --choose--> token ...
                           (R, V)               |
                                                `-> yielded at once, the stop id too

One prompt or many, streamed or not: all of it is `_decode`. R rows, V vocabulary, N candidates.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from minimind.data.conversation import Message
from minimind.data.masking import encode_prompt
from minimind.model.cache import KVCache
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing's own is newer than Python 3.10

SORTED_FIRST = 256  # top-p and min-p of a trained model usually keep fewer tokens than this


class SampleOptions(TypedDict, total=False):  # the fields of SampleConfig, as keywords
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_new_tokens: int
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How each next token is chosen: penalty, temperature, top-k, top-p, min-p, in this order.

    Attributes:
        temperature: below 1 favours likely tokens, above 1 unlikely ones; 0 takes the best.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        min_p: drop what is less likely than this share of the best token; 0 drops nothing.
        repetition_penalty: above 1 makes tokens of the prompt and the answer less likely.
        max_new_tokens: the most tokens of an answer; the model's context is a limit, too.
        seed: the same seed gives the same tokens; None draws from PyTorch's global generator.

    Raises:
        ValueError: an option is out of its range.

    Source: top-p, Holtzman et al. 2019 (arXiv:1904.09751); min-p, Nguyen et al. 2024 (2407.01082);
        repetition penalty, Keskar et al. 2019 (1909.05858); their order, transformers.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        heat, penalty = self.temperature, self.repetition_penalty
        checks = {
            # Not just above 0: in float32 1e-50 is 0, and logits would be divided by it.
            "temperature": (heat == 0 or 1e-6 <= heat <= 1e6, "0, or 1e-6 to 1e6"),
            "top_k": (self.top_k >= 0, "0 for all, or how many"),
            "top_p": (0 < self.top_p <= 1, "more than 0, up to 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (1e-3 <= penalty <= 1e3, "1 for none, or 1e-3 to 1e3"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "0 or more, below 2**63"),
        }
        for name, (ok, remedy) in checks.items():
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)}; use {remedy}")


class Ending(NamedTuple):
    """How an answer ended: at a stop id or by length; and its tokens, the stop id included."""

    finish_reason: Literal["stop", "length"]
    tokens: int


def generate(
    model: Transformer,
    input_ids: Sequence[int] | Tensor,
    config: SampleConfig | None = None,
    *,
    stop_ids: Sequence[int] = (),
    **options: Unpack[SampleOptions],
) -> Generator[int, None, None]:
    """Continue one prompt, token by token.

        1 85 199 ... 199   ->   20   14   2       the last, as 2 is in stop_ids

    Args:
        model: on any device, in any dtype.
        input_ids: the prompt, shorter than the model's context.
        config: how tokens are chosen.
        stop_ids: tokens that end the answer.
        options: fields of SampleConfig, in place of a config: `temperature=0`.

    Yields:
        The ids of the answer, with the stop id that ended it, if one did.

    Raises:
        TypeError: an option is unknown, or `config` isn't a SampleConfig.
        ValueError: an option is out of range or beside a config, the prompt is empty, too long or
            has an id that the model has no row for, or (at that token) the logits aren't finite.
    """
    if not isinstance(config, SampleConfig | None):
        raise TypeError(f"config is {config!r}; give a SampleConfig, or options by their names")
    if config and options:
        raise ValueError("config: given beside other options; put all of them in the config")
    config = config or SampleConfig(**options)
    steps = _decode(model, [_check_prompt(model, input_ids)], config, frozenset(stop_ids))
    return (token for step in steps for _, token in step)


def generate_batch(
    model: Transformer,
    prompts: Iterable[Sequence[int] | Tensor],
    config: SampleConfig,
    stop_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Continue several prompts at once: for each the tokens that `generate` yields.

    What is drawn for a prompt doesn't depend on its neighbours: with a seed, each starts from it.
    """
    checked = [_check_prompt(model, prompt) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in checked]
    if checked:
        for step in _decode(model, checked, config, frozenset(stop_ids)):
            for prompt, token in step:
                answers[prompt].append(token)
    return answers


def reply(
    model: Transformer,
    tokenizer: Tokenizer,
    messages: Iterable[Message | Mapping[str, object]],
    config: SampleConfig | None = None,
    **options: Unpack[SampleOptions],
) -> str:
    """Answer a conversation.

        [{"role": "user", "content": "1 + 1 = ?"}]   ->   "2."

    Returns the answer's text. Arguments and errors are those of `stream_reply`.
    """
    return "".join(stream_reply(model, tokenizer, messages, config, **options))


def stream_reply(
    model: Transformer,
    tokenizer: Tokenizer,
    messages: Iterable[Message | Mapping[str, object]],
    config: SampleConfig | None = None,
    **options: Unpack[SampleOptions],
) -> Generator[str, None, Ending]:
    """Answer a conversation piece by piece; no piece ends within a character.

    The answer ends at one of the tokenizer's stop ids. Control tokens are left out of the text.

    Args:
        model: a model that was trained on ChatML.
        tokenizer: its tokenizer.
        messages: the usual list of `{"role", "content"}` dicts.
        config: how tokens are chosen.
        options: fields of SampleConfig, in place of a config: `temperature=0`.

    Yields:
        Text, never empty.

    Returns:
        An Ending, as the generator's return value (`yield from` gives it).

    Raises:
        DataError: the messages aren't a legal conversation.
        TypeError, ValueError: as `generate`.
    """
    prompt = encode_prompt(messages, tokenizer)
    tokens = generate(model, prompt, config, stop_ids=tokenizer.stop_ids, **options)
    return _decode_text(tokens, tokenizer)


def _decode_text(tokens: Iterable[int], tokenizer: Tokenizer) -> Generator[str, None, Ending]:
    decoder = tokenizer.stream_decoder(skip_control=True)
    token, count = -1, 0
    for count, token in enumerate(tokens, start=1):  # noqa: B007  # the last of both is returned
        if piece := decoder.push(token):
            yield piece
    if rest := decoder.finish():
        yield rest
    return Ending("stop" if token in tokenizer.stop_ids else "length", count)


@torch.inference_mode()  # only while it runs: between two steps the caller has its own mode
def _decode(
    model: Transformer, prompts: list[Tensor], config: SampleConfig, stop_ids: frozenset[int]
) -> Generator[list[tuple[int, int]], None, None]:
    """Yield each step's tokens as (prompt's index, token); a prompt that has ended has none."""
    context = model.config.max_position_embeddings
    limits = [min(config.max_new_tokens, context - len(prompt)) for prompt in prompts]
    capacity = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    cache = KVCache(model.config, len(prompts), capacity, model.device, model.head_weight.dtype)
    draws = _draws(config, max(limits), len(prompts)).to(model.device)
    rows = list(range(len(prompts)))  # the prompt that each row belongs to
    seen = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool, device=model.device)
    for row, prompt in zip(seen, prompts, strict=True):
        row[prompt] = True

    logits = model.prefill(prompts, cache)  # (R, V)
    for step in range(max(limits)):
        if config.repetition_penalty != 1:
            logits = penalize(logits, seen, config.repetition_penalty)
        tokens = choose(logits, config, draws[step, : len(rows)])  # (R,)
        chosen = list(zip(rows, tokens.tolist(), strict=True))
        yield chosen

        kept = [
            row
            for row, (prompt, token) in enumerate(chosen)
            if token not in stop_ids and step + 1 < limits[prompt]
        ]
        if not kept:
            return
        if len(kept) < len(rows):
            cache.keep(kept)
            rows, tokens, seen = [rows[row] for row in kept], tokens[kept], seen[kept]
        seen.scatter_(1, tokens[:, None], True)
        logits = model.decode(tokens, cache)


def choose(logits: Tensor, config: SampleConfig, draws: Tensor) -> Tensor:
    """Choose a token per row of logits (R, V) by draws (R,) in [0, 1) from its distribution."""
    best, token = logits.max(-1)
    if not bool(best.isfinite().all()):
        raise ValueError(
            "model: its logits aren't finite; its weights are broken, or too large for its dtype: "
            "load it with dtype=torch.float32"
        )
    if config.temperature == 0:
        return token
    probabilities, ids = candidates(logits.float() - best[:, None], config)
    # In float64 a draw below 1 times the total stays below the total: a candidate is always found.
    running = probabilities.cumsum(-1, dtype=torch.float64)
    target = draws[:, None] * running[:, -1:]
    return ids.gather(1, torch.searchsorted(running, target, right=True)).squeeze(1)


def candidates(logits: Tensor, config: SampleConfig) -> tuple[Tensor, Tensor]:
    """(R, N) probabilities, 0 where dropped, and their tokens; of logits (R, V) of at most 0."""
    if config.top_k:
        logits, ids = logits.topk(min(config.top_k, logits.size(-1)))
    else:
        ids = torch.arange(logits.size(-1), device=logits.device).expand_as(logits)
    probabilities = (logits / config.temperature).softmax(-1)  # (R, V or top_k)
    if config.top_p == 1 and config.min_p == 0:
        return probabilities, ids
    # Sorting the full vocabulary is slow: do it only if a row keeps every one of the first.
    for count in (SORTED_FIRST, probabilities.size(-1)):
        likeliest, order = probabilities.topk(min(count, probabilities.size(-1)))
        dropped = likeliest < config.min_p * likeliest[:, :1]
        if config.top_p < 1:
            likelier = likeliest.cumsum(-1, dtype=torch.float64) - likeliest
            dropped |= likelier >= config.top_p
        kept = likeliest.masked_fill(dropped, 0)
        if count >= probabilities.size(-1) or not bool((kept[:, -1] > 0).any()):
            break
    return kept, ids.gather(1, order)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens less likely that a row has seen, (R, V) bool, if the penalty is above 1."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _draws(config: SampleConfig, steps: int, rows: int) -> Tensor:
    """(steps, rows) float64 in [0, 1): one draw per token. With a seed, the same for each row."""
    if config.temperature == 0:
        return torch.zeros(steps, rows)
    generator = None if config.seed is None else torch.Generator().manual_seed(config.seed)
    columns = rows if config.seed is None else 1
    return torch.rand(steps, columns, dtype=torch.float64, generator=generator).expand(-1, rows)


def _check_prompt(model: Transformer, input_ids: Sequence[int] | Tensor) -> Tensor:
    prompt = torch.as_tensor(input_ids, dtype=torch.long)
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(f"prompt: its shape is {list(prompt.shape)}; give a list of ids")
    context, vocab_size = model.config.max_position_embeddings, model.config.vocab_size
    if len(prompt) >= context:
        raise ValueError(
            f"prompt: {len(prompt)} tokens, and the model's context of {context} must hold the "
            "answer too; shorten it"
        )
    if outside := prompt[(prompt < 0) | (prompt >= vocab_size)].tolist():
        raise ValueError(
            f"prompt: has id {outside[0]}, and the model has 0 to {vocab_size - 1}; "
            "use the model's own tokenizer"
        )
    return prompt.to(model.device)
