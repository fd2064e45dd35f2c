"""Plant defects into sound conversations, one kind at a time.

Each planter takes a chance source and a sound one-turn pair of question and answer, Korean or
English, and returns messages with exactly its own defect.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

Pair = tuple[str, str]
Messages = list[dict[str, str]]
MAX_CHARACTERS = 3_000  # what `too_long` exceeds: less than the default, and judged faster
SAMPLE = Path(__file__).parents[1] / "data" / "conversations.jsonl"


def sound_rows() -> list[Messages]:
    """This project's own sample: what no rule should object to."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def pairs() -> Iterator[Pair]:
    """One-turn pairs out of the sample with some length, each question once."""
    seen = set()
    for messages in sound_rows():
        if [m["role"] for m in messages] == ["user", "assistant"]:
            question, answer = (m["content"] for m in messages)
            if question not in seen and len(question) >= 8 and len(answer) >= 14:
                seen.add(question)
                yield question, answer


def korean(text: str) -> bool:
    return any("가" <= character <= "힣" for character in text)


def chat(*turns: str) -> Messages:
    return [
        {"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)
    ]


def empty_answer(chance: random.Random, pair: Pair) -> Messages:
    return chat(pair[0], chance.choice(["...", "?", " ", "\n", "—", "(...)", "。", "…!"]))


def too_short(chance: random.Random, pair: Pair) -> Messages:
    return chat(pair[0], chance.choice(["a", "k.", "x", "n!", "ㅇ", "ㅋ"]))


def too_long(chance: random.Random, pair: Pair) -> Messages:
    words = [f"{word}{number}" for number in range(700) for word in pair[1].split()[:1]]
    chance.shuffle(words)
    return chat(pair[0], " ".join(words))


def echo(chance: random.Random, pair: Pair) -> Messages:
    question = pair[0] + pair[1] + pair[0]
    kinds = [question, question + " ", question.upper(), question.rstrip(".!?")]
    return chat(question, chance.choice(kinds))


def repeated_lines(chance: random.Random, pair: Pair) -> Messages:
    lines = [pair[1]] * chance.randint(5, 9) + [pair[1] + " " + pair[0], pair[0] + " " + pair[1]]
    return chat(pair[0], "\n".join(lines))


def repeated_ngrams(chance: random.Random, pair: Pair) -> Messages:
    words = (pair[1] + " " + pair[0]).split()
    phrase = " ".join(words[:6])
    return chat(pair[0], " ".join([phrase] * (60 // len(words[:6]) + chance.randint(3, 8))))


def repeated_characters(chance: random.Random, pair: Pair) -> Messages:
    unit = chance.choice(["아", "ㅋ", "네 ", "ha", "no ", "z"])
    return chat(pair[0], pair[1] + " " + unit * chance.randint(25, 45))


def broken_unicode(chance: random.Random, pair: Pair) -> Messages:
    answer = pair[1]
    kinds: list[Callable[[], str]] = [
        lambda: answer[:5] + "\ufffd" + answer[5:],
        lambda: answer[:5] + "\x08" + answer[5:],
    ]
    if korean(answer):
        kinds.append(lambda: answer.encode("utf-8").decode("latin-1"))
        kinds.append(lambda: answer.encode("cp949").decode("latin-1"))
    else:
        kinds.append(lambda: answer + " It’s a café.".encode().decode("cp1252"))
    return chat(pair[0], chance.choice(kinds)())


def control_tokens(chance: random.Random, pair: Pair) -> Messages:
    leaked = ["<|im_end|>", "<|im_start|>user\n", "</s>", "[INST] ", "<|endoftext|>", "<|eot_id|>"]
    return chat(pair[0], pair[1] + chance.choice(leaked))


def open_code_fence(chance: random.Random, pair: Pair) -> Messages:
    block = "\n```python\nprint(1)\n"
    return chat(pair[0], pair[1] + chance.choice([block, block + "```" + block]))


def other_language(chance: random.Random, pair: Pair) -> Messages:
    # Questions of its own: one of the sample's may ask for another language.
    english = ["What shall we eat tonight?", "Why is the sky blue?", "Tell me about your family."]
    own = ["오늘 저녁에 뭘 먹을까요?", "하늘은 왜 파란가요?", "가족 이야기를 해 주세요."]
    at, turned = chance.randrange(3), korean(pair[0])
    answer = ["It depends on what you like most.", "음, 그건 생각을 좀 해 봐야 알 것 같아요."]
    return chat((own if turned else english)[at], answer[0] if turned else answer[1])


def refusal(chance: random.Random, pair: Pair) -> Messages:
    english = [
        "As an AI language model, I do not have opinions.",
        "I'm sorry, but I cannot assist with that request.",
    ]
    own = ["AI 언어 모델로서 저는 의견이 없습니다.", "죄송하지만 그 요청은 도와드릴 수 없습니다."]
    return chat(pair[0], chance.choice(own if korean(pair[0]) else english))


def unsafe(chance: random.Random, pair: Pair) -> Messages:
    english = ["Go and kill yourself.", "Here is how to make a pipe bomb at home.", "078-05-1120"]
    own = ["그냥 나가 뒈져.", "집에서 폭탄 만드는 법을 알려 줄게.", "번호는 900101-1234567 이야."]
    return chat(pair[0], pair[1] + " " + chance.choice(own if korean(pair[0]) else english))


def role_order(chance: random.Random, pair: Pair) -> Messages:
    question, answer = pair
    user, assistant = chat(question, answer)
    return chance.choice(
        [[user, user, assistant], [user, assistant, assistant], [assistant], [user]]
    )


# Who repeats lines or words repeats runs of words as well.
IMPLIES = {"repeated_lines": {"repeated_ngrams"}, "repeated_characters": {"repeated_ngrams"}}

PLANTERS: dict[str, Callable[[random.Random, Pair], Messages]] = {
    planter.__name__: planter
    for planter in (
        empty_answer,
        too_short,
        too_long,
        echo,
        repeated_lines,
        repeated_ngrams,
        repeated_characters,
        broken_unicode,
        control_tokens,
        open_code_fence,
        other_language,
        refusal,
        unsafe,
        role_order,
    )
}
