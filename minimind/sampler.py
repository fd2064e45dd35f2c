"""Turn logits into tokens, and tokens into answers. Knows no files and no terminal.

    prompt ids --prefill--> logits --choose--> token --decode--> logits --choose--> token ...
                           (R, V)               |
                                                `-> yielded at once, the stop id too

One prompt or many, streamed or whole: all of it is `_decode`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minimind.data.conversation import Message
from minimind.data.masking import encode_prompt
from minimind.model.cache import KVCache
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer

# Shape letters: R rows still going, V vocabulary, N candidates.

FIRST_LOOK = (
    256  # tokens: what top-p and min-p keep of a trained model's distribution is mostly less
)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How each next token is chosen: penalty, temperature, top-k, top-p, min-p, in this order.

    Attributes:
        temperature: below 1 favours likely tokens, above 1 unlikely ones; 0 takes the best.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        min_p: drop what is less likely than this share of the best token; 0 drops nothing.
        repetition_penalty: above 1 makes tokens of the prompt and the answer less likely.
        max_new_tokens: the longest answer; it also ends where the model's context does.
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
        checks = {
            # Not just above 0: in float32 1e-50 is 0, and logits would be divided by it.
            "temperature": (
                self.temperature == 0 or 1e-6 <= self.temperature <= 1e6,
                "0, or 1e-6 to 1e6",
            ),
            "top_k": (self.top_k >= 0, "0 for all, or how many"),
            "top_p": (0 < self.top_p <= 1, "more than 0, up to 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (
                1e-3 <= self.repetition_penalty <= 1e3,
                "1 for none, or 1e-3 to 1e3",
            ),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "0 or more, below 2**63"),
        }
        for name, (fine, remedy) in checks.items():
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)}; use {remedy}")


class Ending(NamedTuple):
    """How an answer ended.

    Attributes:
        by_itself: at a stop id, not by length.
        tokens: how many there were, the stop id too.
    """

    by_itself: bool
    tokens: int


def generate(
    model: Transformer,
    input_ids: Sequence[int] | Tensor,
    *,
    temperature: float = 0.7,
    top_k: int = 0,
    top_p: float = 0.9,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    max_new_tokens: int = 256,
    seed: int | None = None,
    stop_ids: Sequence[int] = (),
    config: SampleConfig | None = None,
) -> Generator[int, None, None]:
    """Go on from one prompt, token by token.

        1 85 199 ... 199   ->   20   14   2       the last, as 2 is in stop_ids

    Args:
        model: on any device, in any dtype.
        input_ids: the prompt, shorter than the model's context.
        temperature, top_k, top_p, min_p, repetition_penalty, max_new_tokens, seed: as in
            SampleConfig.
        stop_ids: tokens that end the answer.
        config: all of the above but `stop_ids`, in place of the keywords.

    Yields:
        The ids of the answer, with the stop id that ended it, if one did.

    Raises:
        ValueError: an option is out of range, the prompt is empty, too long or has an id that the
            model has no row for, or (at that token) the logits aren't finite.
    """
    config = _either(
        config,
        SampleConfig(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            max_new_tokens=max_new_tokens,
            seed=seed,
        ),
    )
    prompts = [_check_prompt(model, input_ids)]
    steps = _decode(model, prompts, config, frozenset(stop_ids))
    return (token for step in steps for _, token in step)


def generate_batch(
    model: Transformer,
    prompts: Iterable[Sequence[int] | Tensor],
    config: SampleConfig,
    stop_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Go on from several prompts at once: for each the tokens that `generate` yields.

    What is drawn for a prompt doesn't depend on its neighbours: with a seed, each starts from it.

    Raises:
        ValueError: as `generate`.
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
    temperature: float = 0.7,
    top_p: float = 0.9,
    max_new_tokens: int = 256,
    seed: int | None = None,
    *,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    config: SampleConfig | None = None,
) -> str:
    """Answer a conversation.

        [{"role": "user", "content": "1 + 1 = ?"}]   ->   "2."

    Args and Raises: as `stream_reply`.
    """
    pieces = stream_reply(
        model,
        tokenizer,
        messages,
        temperature,
        top_p,
        max_new_tokens,
        seed,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        config=config,
    )
    return "".join(pieces)


def stream_reply(
    model: Transformer,
    tokenizer: Tokenizer,
    messages: Iterable[Message | Mapping[str, object]],
    temperature: float = 0.7,
    top_p: float = 0.9,
    max_new_tokens: int = 256,
    seed: int | None = None,
    *,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    config: SampleConfig | None = None,
) -> Generator[str, None, Ending]:
    """Answer a conversation piece by piece; no piece ends within a character.

    The answer ends at one of the tokenizer's stop ids. Control tokens, should the model say any,
    are left out of the text.

    Args:
        model: a model that was trained on ChatML.
        tokenizer: its tokenizer.
        messages: the usual list of `{"role", "content"}` dicts.
        temperature, top_p, max_new_tokens, seed, top_k, min_p, repetition_penalty: as in
            SampleConfig.
        config: all of them, in place of the keywords.

    Yields:
        Text, never empty.

    Returns:
        To `yield from`: how it ended.

    Raises:
        DataError: the messages aren't a legal conversation.
        ValueError: as `generate`.
    """
    tokens = generate(
        model,
        encode_prompt(messages, tokenizer),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop_ids=tokenizer.stop_ids,
        config=config,
    )
    return _text(tokens, tokenizer)


def _text(tokens: Iterable[int], tokenizer: Tokenizer) -> Generator[str, None, Ending]:
    decoder = tokenizer.stream_decoder(skip_control=True)
    token, count = -1, 0
    for count, token in enumerate(tokens, start=1):  # noqa: B007  # the last of both is returned
        if piece := decoder.push(token):
            yield piece
    if rest := decoder.finish():
        yield rest
    return Ending(token in tokenizer.stop_ids, count)


@torch.inference_mode()  # only while it runs: between two steps the caller's mode is the caller's
def _decode(
    model: Transformer, prompts: list[Tensor], config: SampleConfig, stop_ids: frozenset[int]
) -> Generator[list[tuple[int, int]], None, None]:
    """Yield each step's tokens as (prompt's index, token); a prompt that has ended has none."""
    context = model.config.max_position_embeddings
    room = [min(config.max_new_tokens, context - len(prompt)) for prompt in prompts]
    capacity = max(len(prompt) + new for prompt, new in zip(prompts, room, strict=True))
    cache = KVCache(model.config, len(prompts), capacity, model.device, model.head_weight.dtype)
    draws = _draws(config, max(room), len(prompts)).to(model.device)
    seen = _seen(prompts, model.config.vocab_size) if config.repetition_penalty != 1 else None
    rows = list(range(len(prompts)))  # the prompt that each row still going belongs to

    logits = model.prefill(prompts, cache)
    for step in range(max(room)):
        if seen is not None:
            logits = penalize(logits, seen, config.repetition_penalty)
        tokens = choose(logits, config, draws[step, : len(rows)])
        answered = list(zip(rows, tokens.tolist(), strict=True))
        yield answered

        going = [
            index
            for index, (prompt, token) in enumerate(answered)
            if token not in stop_ids and step + 1 < room[prompt]
        ]
        if not going:
            return
        if len(going) < len(rows):
            cache.keep(going)
            rows, tokens = [rows[index] for index in going], tokens[going]
            seen = None if seen is None else seen[going]
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        logits = model.decode(tokens, cache)


def choose(logits: Tensor, config: SampleConfig, draws: Tensor) -> Tensor:
    """Take one token per row.

    Args:
        logits: (R, V)
        config: the steps from temperature on.
        draws: (R,) float64 in [0, 1): where in each row's distribution to take it.

    Returns:
        (R,) int64

    Raises:
        ValueError: a logit is NaN or infinite, or all are -infinite.
    """
    if config.temperature == 0:
        best, token = logits.max(-1)
        _check_finite(best)
        return token
    probabilities, ids = candidates(logits, config)
    # In float64 a draw below 1 times the total stays below the total: a candidate is always found.
    running = probabilities.cumsum(-1, dtype=torch.float64)
    target = draws[:, None] * running[:, -1:]
    return ids.gather(1, torch.searchsorted(running, target, right=True)).squeeze(1)


def candidates(logits: Tensor, config: SampleConfig) -> tuple[Tensor, Tensor]:
    """Give tokens their probabilities, and drop those that the config does.

    Returns:
        (R, N) probabilities, 0 where dropped, otherwise what they were before top-p and min-p; and
        (R, N) the tokens' ids.

    Raises:
        ValueError: as `choose`.
    """
    logits = logits.float()
    best = logits.amax(-1, keepdim=True)
    _check_finite(best)
    if config.top_k:
        logits, ids = logits.topk(min(config.top_k, logits.size(-1)))
    else:
        ids = torch.arange(logits.size(-1), device=logits.device).expand_as(logits)
    probabilities = ((logits - best) / config.temperature).softmax(-1)  # (R, V or top_k)
    if config.top_p == 1 and config.min_p == 0:
        return probabilities, ids
    # To sort a whole vocabulary is slow and seldom needed: it is if the last of some is still kept.
    likeliest, order = probabilities.topk(min(FIRST_LOOK, probabilities.size(-1)))
    kept = _drop(likeliest, config)
    if bool((kept[:, -1] > 0).any()):
        likeliest, order = probabilities.sort(descending=True)
        kept = _drop(likeliest, config)
    return kept, ids.gather(1, order)


def _drop(likeliest: Tensor, config: SampleConfig) -> Tensor:
    """Set to 0 what top-p and then min-p drop; probabilities (R, N), the largest first."""
    dropped = likeliest < config.min_p * likeliest[:, :1]
    if config.top_p < 1:
        likelier = likeliest.cumsum(-1, dtype=torch.float64) - likeliest
        dropped |= likelier >= config.top_p
    return likeliest.masked_fill(dropped, 0)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of seen tokens by `penalty`, and multiply the negative ones.

    Args:
        logits: (R, V)
        seen: (R, V) bool
        penalty: more than 1 makes them less likely.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _draws(config: SampleConfig, steps: int, rows: int) -> Tensor:
    """(steps, rows) float64 in [0, 1): one draw per token. With a seed, the same for each row."""
    if config.temperature == 0:
        return torch.zeros(steps, rows)
    if config.seed is None:
        return torch.rand(steps, rows, dtype=torch.float64)
    generator = torch.Generator().manual_seed(config.seed)
    return torch.rand(steps, 1, dtype=torch.float64, generator=generator).expand(-1, rows)


def _seen(prompts: list[Tensor], vocab_size: int) -> Tensor:
    """(R, V) bool: which tokens each prompt has."""
    seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=prompts[0].device)
    for row, prompt in zip(seen, prompts, strict=True):
        row[prompt] = True
    return seen


def _check_prompt(model: Transformer, input_ids: Sequence[int] | Tensor) -> Tensor:
    """The prompt as a tensor on the model's device."""
    prompt = torch.as_tensor(input_ids, dtype=torch.long)
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(
            f"prompt: its shape is {list(prompt.shape)}; give one or more ids in a row"
        )
    context, vocab_size = model.config.max_position_embeddings, model.config.vocab_size
    if len(prompt) >= context:
        raise ValueError(
            f"prompt: {len(prompt)} tokens, and the model's context of {context} must hold the "
            "answer too; shorten it"
        )
    low, high = int(prompt.min()), int(prompt.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"prompt: has id {low if low < 0 else high}, and the model has 0 to {vocab_size - 1}; "
            "use the model's own tokenizer"
        )
    return prompt.to(model.device)


def _check_finite(best: Tensor) -> None:
    if not bool(best.isfinite().all()):
        raise ValueError(
            "model: its logits aren't finite; its weights are broken, or too large for its dtype: "
            "load it with dtype=torch.float32"
        )


def _either(config: SampleConfig | None, keywords: SampleConfig) -> SampleConfig:
    if config is None:
        return keywords
    if keywords != SampleConfig():
        raise ValueError("config: given beside other options; put all of them in the config")
    return config
