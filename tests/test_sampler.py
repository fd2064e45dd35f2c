from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minimind.data.errors import DataError
from minimind.data.masking import encode_prompt
from minimind.model.pretrained import BASE
from minimind.model.transformer import Transformer
from minimind.sampler import (
    SORTED_FIRST,
    Ending,
    SampleConfig,
    SampleOptions,
    candidates,
    choose,
    generate,
    generate_batch,
    penalize,
    reply,
    stream_reply,
)
from minimind.tokenizer import Tokenizer
from tests.support import tiny
from tests.support.scripted import Scripted
from tests.support.strategies import texts

VOCABULARY = 300
CONTEXT = 64
GREEDY = SampleConfig(temperature=0)
TOKENIZER = Tokenizer.load(BASE)
QUESTION = [{"role": "user", "content": "오늘 날씨 어때? How is it?"}]


def random_model(seed: int = 0, **fields: object) -> Transformer:
    """Weights so large that the logits differ, and most drawn tokens aren't the best."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, **fields}
    return Transformer(replace(tiny.CONFIG, **sizes)).initialize(seed, std=0.4)


MODEL = random_model()


def ragged_prompts(count: int = 8) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(VOCABULARY, size=1 + 3 * i).tolist() for i in range(count)]


# The slow twins


def textbook(logits: np.ndarray, config: SampleConfig) -> tuple[np.ndarray, float]:
    """The distribution that a token is drawn from, step by step and in float64.

    Returns:
        (V,) probabilities, and how near to a limit the nearest sum or probability came.
    """
    nearest = 1.0
    p = np.exp((logits.astype(np.float64) - logits.max()) / config.temperature)
    order = np.argsort(-p)
    if config.top_k:
        p[order[config.top_k :]] = 0
    p /= p.sum()
    if config.top_p < 1:
        reached = 0.0
        for token in order:
            nearest = min(nearest, abs(reached - config.top_p))
            likely, reached = p[token], reached + p[token]
            if reached - likely >= config.top_p:
                p[token] = 0
    share = p / p.max()
    if 0 < config.min_p < 1:
        nearest = min(nearest, abs(share - config.min_p).min())
    p[share < config.min_p] = 0
    return p / p.sum(), nearest


def from_full_logits(
    model: Transformer, prompt: list[int], config: SampleConfig, stop_ids: tuple[int, ...] = ()
) -> list[int]:
    """What `generate` must yield, without a cache: everything is read again for every token."""
    ids = list(prompt)
    rng = torch.Generator().manual_seed(config.seed or 0)
    for _ in range(config.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1].double().numpy()
        for token in set(ids):
            penalty = config.repetition_penalty
            logits[token] = (
                logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            )
        draw = torch.rand(1, dtype=torch.float64, generator=rng).item()
        if config.temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            p, _ = textbook(logits, config)
            order = np.argsort(-p)
            ids.append(int(order[np.searchsorted(p[order].cumsum(), draw, side="right")]))
        if ids[-1] in stop_ids or len(ids) == model.config.max_position_embeddings:
            break
    return ids[len(prompt) :]


# Choosing

options = st.builds(
    SampleConfig,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 20) | st.integers(250, 700),
    top_p=st.just(1.0) | st.floats(0.01, 1),
    min_p=st.just(0.0) | st.floats(0, 1),
)


def random_logits(seed: int, vocabulary: int, scale: float = 3.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=vocabulary).astype(np.float32)


@given(options, st.integers(0, 1000), st.sampled_from([1, 2, 50, 255, 256, 257, 600]))
@settings(max_examples=200)
def test_tokens_get_the_probabilities_of_the_textbook(config, seed, vocabulary) -> None:
    logits = random_logits(seed, vocabulary)
    expected, nearest = textbook(logits, config)
    assume(nearest > 1e-5)  # else rounding decides
    shifted = torch.from_numpy(logits - logits.max())  # as `choose` does, else float32 loses digits
    kept, ids = candidates(shifted[None], config)
    probabilities = torch.zeros(vocabulary).scatter(0, ids[0], kept[0])
    np.testing.assert_allclose(probabilities / probabilities.sum(), expected, atol=1e-6)
    sure = (expected == 0) | (expected > 1e-30)  # what float32 can write
    assert ((probabilities > 0).numpy() == (expected > 0))[sure].all()


@pytest.mark.parametrize("top_k", [0, 7])
@pytest.mark.parametrize("top_p", [0.4, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_steps_and_their_order_are_those_of_transformers(top_k, top_p, min_p, penalty) -> None:
    config = SampleConfig(temperature=1.7, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.from_numpy(random_logits(0, 500))[None]
    prompt = logits.topk(20).indices[:, ::2]
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    steps += [TemperatureLogitsWarper(config.temperature)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [MinPLogitsWarper(min_p)] if min_p else []
    expected = steps(prompt, logits.clone()).softmax(-1)

    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, prompt, True)
    kept, ids = candidates(penalize(logits, seen, penalty), config)
    probabilities = torch.zeros_like(logits).scatter(1, ids, kept)
    torch.testing.assert_close(probabilities / probabilities.sum(), expected, atol=1e-6, rtol=0)


def test_equal_draws_over_the_unit_interval_hit_each_token_as_often_as_it_is_likely() -> None:
    count = 100_000
    config = SampleConfig(temperature=1.0, top_p=0.8, min_p=0.02)
    logits = random_logits(1, 50, scale=1.0)
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = choose(torch.from_numpy(logits).expand(count, -1), config, draws)
    frequencies = torch.bincount(tokens, minlength=50) / count
    expected, _ = textbook(logits, config)
    assert (expected > 0).sum() > 5
    np.testing.assert_allclose(frequencies, expected, atol=2 / count)


@given(options, st.integers(0, 1000), st.sampled_from([2, 257, 5000]))
def test_the_smallest_and_the_largest_draw_take_a_token_that_was_not_dropped(
    config, seed, vocabulary
) -> None:
    logits = torch.from_numpy(random_logits(seed, vocabulary))[None]
    kept, ids = candidates(logits, config)
    allowed = ids[kept > 0].tolist()
    for draw in (0.0, 1 - 2**-53):
        token = choose(logits, config, torch.tensor([draw], dtype=torch.float64))
        assert token.item() in allowed


class Counts(TorchDispatchMode):
    """Counts the calls of each of PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_token_that_cannot_be_is_not_taken_even_if_it_is_first() -> None:
    logits, config = torch.tensor([[-1e4, 0.0]]), SampleConfig(temperature=1.0, top_p=1.0)
    assert choose(logits, config, torch.zeros(1, dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("top_p", [0.999, 1.0])
def test_more_tokens_are_kept_than_the_first_look_sees_where_they_are_all_likely(top_p) -> None:
    logits = torch.zeros(1, 4 * SORTED_FIRST)
    kept, _ = candidates(logits, SampleConfig(temperature=1.0, top_p=top_p))
    assert (kept > 0).sum() >= 0.998 * logits.numel()


def test_a_vocabulary_that_is_kept_at_the_first_look_is_sorted_once() -> None:
    with Counts() as counts:
        candidates(torch.zeros(1, SORTED_FIRST), SampleConfig(temperature=1.0, top_p=0.999999))
    assert counts.calls["topk"] == 1


def test_a_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    assert penalize(logits, seen, 4.0).tolist() == [[0.5, -8.0, 2.0, -2.0, 0.0]]


@pytest.mark.parametrize("temperature", [0, 1e-6, 1e6])
def test_no_legal_temperature_makes_a_nan(temperature) -> None:
    logits = torch.tensor([[1e4, -1e4, 9.9e3]])
    draws = torch.full((1,), 0.01, dtype=torch.float64)
    assert choose(logits, SampleConfig(temperature=temperature), draws).item() == 0


@pytest.mark.parametrize("config", [GREEDY, SampleConfig(), SampleConfig(top_k=2)], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(config, bad) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, bad, 3.0]])
    with pytest.raises(ValueError, match="model: its logits aren't finite"):
        choose(logits, config, torch.zeros(2, dtype=torch.float64))


def test_broken_weights_are_an_error_at_the_first_token() -> None:
    model = random_model()
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="its weights are broken, or too large for its dtype"):
        list(generate(model, [1, 2, 3]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-50),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("max_new_tokens", 0),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_an_option_out_of_its_range_is_named(field, value) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*; use"):
        SampleConfig(**{field: value})
    with pytest.raises(ValueError, match=f"{field} is .*; use"):
        generate(MODEL, [1], **{field: value})


# Generating


SAMPLED = [
    SampleConfig(temperature=1.0, top_p=1.0, top_k=50, seed=1),
    SampleConfig(temperature=1.5, top_p=0.9, seed=2),
    SampleConfig(temperature=0.8, top_p=0.95, min_p=0.01, repetition_penalty=1.2, seed=3),
]


@pytest.mark.parametrize(
    "config", [GREEDY, replace(GREEDY, repetition_penalty=1.3), *SAMPLED], ids=str
)
def test_tokens_are_those_of_full_logits_and_textbook_sampling(config) -> None:
    config = replace(config, max_new_tokens=20)
    answers = set()
    for prompt in ragged_prompts(4):
        answer = list(generate(MODEL, prompt, config=config))
        assert answer == from_full_logits(MODEL, prompt, config)
        answers.add(tuple(answer))
    assert len(answers) == 4


def some_stops(config: SampleConfig) -> tuple[int, ...]:
    """Ids that end some of the ragged prompts' answers early, at different tokens."""
    answers = [list(generate(MODEL, prompt, config=config)) for prompt in ragged_prompts()]
    return tuple(answer[index] for index, answer in enumerate(answers) if index % 2)


@pytest.mark.parametrize(
    "config", [GREEDY, replace(GREEDY, repetition_penalty=1.3), *SAMPLED], ids=str
)
def test_a_ragged_batch_gives_what_one_prompt_at_a_time_gives(config) -> None:
    config = replace(config, max_new_tokens=30)
    stop_ids = some_stops(config)
    prompts = ragged_prompts()
    single = [list(generate(MODEL, p, config=config, stop_ids=stop_ids)) for p in prompts]
    assert len({len(answer) for answer in single}) > 2  # rows leave the batch at different times
    assert generate_batch(MODEL, prompts, config, stop_ids) == single
    assert generate_batch(MODEL, prompts[::-1], config, stop_ids) == single[::-1]


def test_what_is_drawn_for_a_prompt_does_not_depend_on_its_neighbours() -> None:
    config = replace(SAMPLED[1], max_new_tokens=20)
    prompt, *others = ragged_prompts()
    alone = generate_batch(MODEL, [prompt], config)
    assert generate_batch(MODEL, [others[3], prompt, others[0]], config)[1:2] == alone
    assert generate_batch(MODEL, [prompt, *others], config)[:1] == alone


def test_no_prompts_give_no_answers() -> None:
    assert generate_batch(MODEL, [], GREEDY) == []


def test_without_a_seed_the_rows_of_a_batch_are_drawn_apart() -> None:
    config = SampleConfig(temperature=1.5, max_new_tokens=20)
    one, other = generate_batch(MODEL, [[5, 6], [5, 6]], config)
    assert one != other


def test_the_stop_id_is_the_last_token() -> None:
    prompt = ragged_prompts()[3]
    whole = list(generate(MODEL, prompt, config=GREEDY))
    stop = whole[5]
    cut = list(generate(MODEL, prompt, temperature=0, stop_ids=[stop]))
    assert cut == whole[: whole.index(stop) + 1]


def test_an_answer_ends_where_the_context_does() -> None:
    for prompt in (ragged_prompts()[7], [1] * (CONTEXT - 1)):
        assert len(prompt) + len(list(generate(MODEL, prompt))) == CONTEXT
    lengths = [len(prompt) for prompt in ragged_prompts()]
    answers = generate_batch(MODEL, ragged_prompts(), GREEDY)
    assert [len(a) + n for a, n in zip(answers, lengths, strict=True)] == [CONTEXT] * 8


def test_an_answer_has_max_new_tokens_and_the_limit_does_not_change_its_beginning() -> None:
    long = list(generate(MODEL, [1, 2], temperature=1.0, max_new_tokens=40, seed=5))
    short = list(generate(MODEL, [1, 2], temperature=1.0, max_new_tokens=7, seed=5))
    assert (len(long), short) == (40, long[:7])


def test_a_seed_decides_the_tokens_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    runs = [list(generate(MODEL, [1, 2], temperature=1.5, seed=seed)) for seed in (7, 7, 8)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generator_decides() -> None:
    runs = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        runs.append(list(generate(MODEL, [1, 2], temperature=1.5)))
    assert runs[0] == runs[1] != runs[2]


def test_a_prompt_may_be_a_tensor() -> None:
    from_list = list(generate(MODEL, [4, 5, 6], temperature=0))
    assert list(generate(MODEL, torch.tensor([4, 5, 6]), temperature=0)) == from_list
    assert list(generate(MODEL, torch.tensor([4, 5, 6]).int(), temperature=0)) == from_list


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"prompt: its shape is \[0\]; give a list of ids"),
        (torch.tensor([[1, 2]]), r"prompt: its shape is \[1, 2\]; give a list of ids"),
        ([1] * CONTEXT, "prompt: 64 tokens, and the model's context of 64 must hold the answer"),
        ([1, VOCABULARY], "prompt: has id 300, and the model has 0 to 299; use the model's own"),
        ([1, -100], "prompt: has id -100, and the model has 0 to 299"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_an_error_at_once(prompt, message) -> None:
    with pytest.raises(ValueError, match=message):
        generate(MODEL, prompt)
    with pytest.raises(ValueError, match=message):
        generate_batch(MODEL, [[1], prompt], GREEDY)


def test_options_come_as_keywords_or_as_a_config_but_not_as_both() -> None:
    config = replace(SAMPLED[2], max_new_tokens=9)
    answer = list(generate(MODEL, [1], config))
    assert list(generate(MODEL, [1], config=config)) == answer
    assert list(generate(MODEL, [1], **asdict(config))) == answer
    for function in (reply, stream_reply):
        with pytest.raises(ValueError, match="config: given beside other options; put all of them"):
            function(MODEL, TOKENIZER, QUESTION, config, temperature=0)
        with pytest.raises(TypeError, match=r"config is 0\.7; give a SampleConfig, or"):
            function(MODEL, TOKENIZER, QUESTION, 0.7)
        with pytest.raises(TypeError, match="tempreature"):
            function(MODEL, TOKENIZER, QUESTION, tempreature=0)


def test_the_typed_options_are_the_fields_of_the_config() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(SampleConfig)}
    types = {name: kind.__forward_arg__ for name, kind in SampleOptions.__annotations__.items()}
    assert types == fields


def test_inference_mode_does_not_leak_to_the_caller_between_two_tokens() -> None:
    tokens = generate(MODEL, [1, 2, 3])
    for _ in range(3):
        next(tokens)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    tokens.close()
    assert not torch.is_inference_mode_enabled()


def test_generating_keeps_nothing_for_gradients(monkeypatch) -> None:
    model, modes = random_model(), []
    for name in ("prefill", "decode"):
        method = getattr(model, name)

        def noticing(*arguments, method=method):
            modes.append(torch.is_inference_mode_enabled())
            return method(*arguments)

        monkeypatch.setattr(model, name, noticing)
    list(generate(model, [1, 2, 3], max_new_tokens=3))
    assert modes == [True] * 3


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_has_answered_can_be_trained_as_if_it_had_not(training) -> None:
    gradients = []
    for answers in (False, True):
        model = random_model().train(training)
        if answers:
            list(generate(model, [1, 2, 3]))
        assert model.training == training
        model(torch.arange(12).view(2, 6)).logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_half_precision_model_answers_in_its_own_precision() -> None:
    model = random_model().to(torch.bfloat16)
    answer = list(generate(model, [1, 2, 3], temperature=0, max_new_tokens=10))
    with torch.no_grad():
        first = model(torch.tensor([[1, 2, 3]]))[0, -1].argmax().item()
    assert (len(answer), answer[0]) == (10, first)


# Replying


def test_a_reply_is_what_the_model_says_up_to_its_stop_token() -> None:
    model = Scripted(TOKENIZER, "맑아요! It's sunny. 👩‍👩‍👧‍👦")
    assert reply(model, TOKENIZER, QUESTION) == "맑아요! It's sunny. 👩‍👩‍👧‍👦"
    assert model.prompts == [encode_prompt(QUESTION, TOKENIZER)]


@pytest.mark.parametrize("stop", TOKENIZER.stop_ids)
def test_each_of_the_tokenizers_stop_ids_ends_a_reply(stop) -> None:
    assert reply(Scripted(TOKENIZER, ["네.", stop, " 아니요."]), TOKENIZER, QUESTION) == "네."


@given(texts())
@settings(max_examples=40)
def test_streamed_pieces_joined_are_the_reply_and_none_breaks_a_character(text) -> None:
    config = SampleConfig(max_new_tokens=250)
    assume(len(TOKENIZER.encode(text)) < 200)
    pieces = list(stream_reply(Scripted(TOKENIZER, text), TOKENIZER, QUESTION, config=config))
    assert "".join(pieces) == text
    assert all(pieces)
    assert reply(Scripted(TOKENIZER, text), TOKENIZER, QUESTION, config=config) == text


def test_text_is_streamed_as_it_is_said() -> None:
    model = Scripted(TOKENIZER, ["하나", RuntimeError("too far"), "둘"])
    pieces = stream_reply(model, TOKENIZER, QUESTION)
    said = ""
    while said != "하나":
        said += next(pieces)
    with pytest.raises(RuntimeError, match="too far"):
        next(pieces)


def test_control_tokens_that_the_model_says_are_not_in_the_text() -> None:
    start, think = (TOKENIZER.encode_control(token) for token in ("<|im_start|>", "<think>"))
    answer = ["좋", start, "아요", think, TOKENIZER.encode_control("<|pad|>"), "!"]
    assert reply(Scripted(TOKENIZER, answer), TOKENIZER, QUESTION) == "좋아요!"


def ended(stream) -> Ending:
    while True:
        try:
            next(stream)
        except StopIteration as stop:
            return stop.value


def test_a_stream_returns_why_the_answer_ended_and_its_tokens() -> None:
    options = {"temperature": 0, "max_new_tokens": 3}
    whole = ended(stream_reply(Scripted(TOKENIZER, "1"), TOKENIZER, QUESTION, **options))
    assert whole == ("stop", 2)
    cut = ended(stream_reply(Scripted(TOKENIZER, "1234"), TOKENIZER, QUESTION, **options))
    assert cut == ("length", 3)


def test_an_answer_cut_within_a_character_ends_with_a_replacement_character() -> None:
    ids = TOKENIZER.encode("a" + "\U0001f9ff")  # an emoji of several tokens
    assert len(ids) > 2
    text = reply(Scripted(TOKENIZER, ids), TOKENIZER, QUESTION, max_new_tokens=2)
    assert text == "a\ufffd"


def test_a_conversation_that_is_none_or_too_long_is_an_error_before_the_stream() -> None:
    model = Scripted(TOKENIZER)
    with pytest.raises(DataError, match='has role "bot"'):
        stream_reply(model, TOKENIZER, [{"role": "bot", "content": "Hi"}])
    with pytest.raises(ValueError, match="the model's context of 256 must hold the answer too"):
        stream_reply(model, TOKENIZER, [{"role": "user", "content": "가나다 " * 300}])
    assert model.prompts == []
