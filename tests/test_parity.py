"""Against transformers, in float32: the same weights give the same logits and the same answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import minimind
from minimind.model.config import ModelConfig
from minimind.model.families import FAMILIES
from minimind.model.transformer import Transformer
from tests.support.checkpoints import LLAMA3, TINY, YARN, tiny_transformers_model, write_checkpoint

TOLERANCE = 1e-4
ROPES = {"plain": {}, "llama3": LLAMA3, "yarn": YARN}
YARN_1E4 = {**YARN, "rope_theta": 1e4}
BIASES = [
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("seed_oss", {"attention_bias": False}),
    ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    ("smollm3", {"attention_bias": True, "mlp_bias": True}),
]
SHAPES = [
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 512}),  # all of the context
    ("qwen2", {"sliding_window": 64}),  # switched off
    ("qwen3", {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 2}),
    ("smollm3", {"no_rope_layers": [0, 1]}),
    ("smollm3", {"no_rope_layers": [1, 1]}),
    ("smollm3", {"no_rope_layers": [0, 0]}),
    ("smollm3", {"no_rope_layer_interval": 2}),
    ("llama", {"num_key_value_heads": 1}),
    ("qwen2", {"num_key_value_heads": 4}),
    ("qwen3", {"head_dim": 8}),
    ("qwen3", {"rms_norm_eps": 0.1}),
    ("llama", {"hidden_size": 48, "head_dim": 128}),
    ("llama", {"rope_parameters": {**YARN_1E4, "attention_factor": 1.5}}),
    (
        "llama",
        {"rope_parameters": {**YARN_1E4, "beta_fast": 4.0, "truncate": False}},
    ),
    (
        "llama",
        {"rope_parameters": {**YARN_1E4, "mscale": 1.0, "mscale_all_dim": 0.7}},
    ),
]


def ours_from(theirs) -> Transformer:
    model = Transformer(ModelConfig.from_hf(theirs.config.to_dict()))
    weights = {k: v for k, v in theirs.state_dict().items() if k in model.state_dict()}
    model.load_state_dict(weights)
    return model


def assert_same_logits(theirs, tokens: int = 40) -> None:
    torch.manual_seed(0)
    input_ids = torch.randint(TINY["vocab_size"], (2, tokens))
    with torch.no_grad():
        expected = theirs(input_ids).logits
        logits = ours_from(theirs)(input_ids)
    assert expected.std() > 0.1  # logits that could differ
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_are_those_of_transformers(model_type: str, tied: bool, rope: str) -> None:
    # 300 tokens: beyond the original context of both ways to stretch it.
    options = {"tie_word_embeddings": tied, "rope_parameters": {"rope_theta": 5e5, **ROPES[rope]}}
    if FAMILIES[model_type].rope_may_be_left_out:
        options["no_rope_layers"] = [1, 0]
    theirs = tiny_transformers_model(model_type, **options)
    assert_same_logits(theirs, tokens=300)


@pytest.mark.parametrize(("model_type", "fields"), BIASES + SHAPES, ids=str)
def test_every_other_option_gives_the_logits_of_transformers(model_type: str, fields) -> None:
    assert_same_logits(tiny_transformers_model(model_type, **fields), tokens=200)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_which_kernel_transformers_uses_does_not_matter(attention: str) -> None:
    theirs = tiny_transformers_model("qwen3")
    theirs.set_attn_implementation(attention)
    assert_same_logits(theirs)


NUMBERS = list(itertools.product("1357", repeat=2))
PROMPTS = [
    *(f"What is {a} plus {b}?" for a, b in NUMBERS),
    *(f"{a}에 {b}를 곱하면?" for a, b in NUMBERS),
    *(f"Count from {a} to {b}" for a, b in NUMBERS),
    *(f"{a}보다 큰 수 {b}" for a, b in NUMBERS),
]


@pytest.mark.parametrize(
    ("model_type", "every"), [("qwen3", 1), *((name, 4) for name in FAMILIES if name != "qwen3")]
)
def test_a_saved_run_answers_in_transformers_token_for_token(model_type, every, tmp_path) -> None:
    left_out = FAMILIES[model_type].rope_may_be_left_out
    options = {"no_rope_layers": [1, 0]} if left_out else {}
    write_checkpoint(tmp_path / "base", model_type, **options)
    ours, tokenizer = minimind.load(tmp_path / "base")
    minimind.save(tmp_path / "run", ours, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    prompts, answers = PROMPTS[::every], set()
    for prompt in prompts:
        answers.add(assert_same_answer(ours, theirs, tokenizer.encode(prompt), tokenizer.stop_ids))
    assert len(prompts) * every == len(PROMPTS) >= 50
    assert len(answers) > len(prompts) / 2  # not one loop that everything falls into


def assert_same_answer(
    ours: Transformer,
    theirs: PreTrainedModel,
    prompt_ids: list[int],
    stop_ids: Sequence[int],
    max_new_tokens: int = 10,
) -> tuple[int, ...]:
    """Greedy answers differ nowhere, or first where their two best logits lie within 1e-4.

    They stop by the generation_config that they have read, we by `stop_ids`.
    """
    options = {"temperature": 0, "max_new_tokens": max_new_tokens, "stop_ids": stop_ids}
    answer = list(minimind.generate(ours, prompt_ids, **options))
    prompt = torch.tensor([prompt_ids])
    mask = torch.ones_like(prompt)
    output = theirs.generate(
        prompt, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens
    )
    expected = output[0, len(prompt_ids) :].tolist()
    if answer != expected:
        pairs = enumerate(itertools.zip_longest(answer, expected))
        first = next(index for index, (a, b) in pairs if a != b)
        with torch.no_grad():
            logits = theirs(output[:, : len(prompt_ids) + first]).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        assert best - second <= TOLERANCE, f"token {first}: {answer} is not {expected}"
    return tuple(answer)
