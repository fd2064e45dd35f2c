"""The sample and the held-out prompts are what their READMEs say. Knows no model, no tokenizer.

tests/data/conversations.jsonl     what the README's first command trains on, written by hand
tests/data/facts.jsonl             the same, written by minimind/base/recipe/questions.py
benchmarks/data/held_out.jsonl     paraphrases of it, and facts that only the base has read, each
                                   with the pattern a right answer matches
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from random import Random
from typing import TypedDict

import pytest

from minimind.base.recipe.facts import read_world
from minimind.base.recipe.statements import Speaker
from minimind.base.recipe.stories import Teller
from minimind.base.recipe.sums import Reckoner
from minimind.data.conversation import Conversation, irregularities, parse_conversation

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "data" / "conversations.jsonl"
FACTS = ROOT / "tests" / "data" / "facts.jsonl"
HELD_OUT = ROOT / "benchmarks" / "data" / "held_out.jsonl"

NEAR_DUPLICATE = 0.85  # of two conversations of the sample
TOO_CLOSE = 0.6  # of a held-out prompt and the sample


class HeldOut(TypedDict):
    language: str
    intent: str
    kind: str
    messages: list[dict[str, str]]
    pattern: str


def normalized(text: str) -> str:
    """NFKC, case-folded, letters and digits only: "Hi, Mini!" and "hi mini" are one prompt."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def four_grams(text: str) -> frozenset[str]:
    text = normalized(text)
    return frozenset(text[i : i + 4] for i in range(len(text) - 3)) or frozenset({text})


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def texts_of(conversation: Conversation, role: str) -> list[str]:
    return [message.content for message in conversation.messages if message.role == role]


def questions(conversation: Conversation) -> str:
    return "\n".join(texts_of(conversation, "user"))


def language_of(conversation: Conversation) -> str:
    return "ko" if re.search("[가-힣]", questions(conversation)) else "en"


def turns(conversation: Conversation) -> int:
    return len(texts_of(conversation, "user"))


def has_system(conversation: Conversation) -> bool:
    return conversation.messages[0].role == "system"


def share(rows: Iterable[bool]) -> float:
    values = list(rows)
    return sum(values) / len(values)


def read(path: Path) -> list[Conversation]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [parse_conversation(json.loads(line)) for line in lines]


@pytest.fixture(scope="module")
def sample() -> list[Conversation]:
    return read(SAMPLE)


@pytest.fixture(scope="module")
def facts() -> list[Conversation]:
    return read(FACTS)


@pytest.fixture(scope="module")
def taught(sample: list[Conversation], facts: list[Conversation]) -> list[Conversation]:
    """All that the first command trains on."""
    return sample + facts


@pytest.fixture(scope="module")
def held_out() -> list[HeldOut]:
    return [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]


def held_out_conversation(row: HeldOut) -> Conversation:
    return parse_conversation({"messages": row["messages"]})


# --- the sample ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SAMPLE, FACTS], ids=lambda path: path.stem)
def test_every_line_is_one_plain_row_in_unescaped_utf_8(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert list(row) == ["messages"]
        assert all(list(message) == ["role", "content"] for message in row["messages"])
        assert line == json.dumps(row, ensure_ascii=False)
        assert line == unicodedata.normalize("NFC", line)
        assert all(message["content"] == message["content"].strip() for message in row["messages"])


def test_at_least_640_conversations_half_korean_and_half_english(
    sample: list[Conversation],
) -> None:
    assert len(sample) >= 640
    assert share(language_of(row) == "ko" for row in sample) == pytest.approx(0.5, abs=0.01)


def test_at_least_1000_conversations_ask_for_facts_half_of_them_in_korean(
    facts: list[Conversation],
) -> None:
    assert len(facts) >= 1000
    assert share(language_of(row) == "ko" for row in facts) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("path", [SAMPLE, FACTS], ids=lambda path: path.stem)
def test_the_first_rows_alone_are_half_and_half_too(path: Path) -> None:
    # --limit takes the first rows.
    rows = read(path)[:100]
    assert share(language_of(row) == "ko" for row in rows) == pytest.approx(0.5, abs=0.02)


def test_every_row_takes_regular_turns_and_ends_with_an_answer(
    taught: list[Conversation],
) -> None:
    for row in taught:
        roles = [message.role for message in row.messages]
        assert irregularities(row) == []
        assert roles[has_system(row) :] == ["user", "assistant"] * turns(row)
        assert 1 <= turns(row) <= 3


@pytest.mark.parametrize("language", ["ko", "en"])
@pytest.mark.parametrize("path", [SAMPLE, FACTS], ids=lambda path: path.stem)
def test_several_turns_and_system_prompts_have_their_share(path: Path, language: str) -> None:
    rows = [row for row in read(path) if language_of(row) == language]
    assert 0.09 <= share(turns(row) > 1 for row in rows) <= 0.18
    assert 0.09 <= share(has_system(row) for row in rows) <= 0.18
    assert any(has_system(row) and turns(row) > 1 for row in rows)


@pytest.mark.parametrize("language", ["ko", "en"])
def test_no_two_conversations_ask_nearly_the_same(
    taught: list[Conversation], language: str
) -> None:
    asked = [questions(row) for row in taught if language_of(row) == language]
    prompts = [(text, four_grams(text)) for text in asked]
    assert len({normalized(text) for text, _ in prompts}) == len(prompts)
    near = [(a, b) for (a, x), (b, y) in combinations(prompts, 2) if jaccard(x, y) > NEAR_DUPLICATE]
    assert near == []


def test_answers_are_short_and_in_the_language_of_the_question(
    taught: list[Conversation],
) -> None:
    for row in taught:
        for answer in texts_of(row, "assistant"):
            assert len(answer.split()) <= 50
            korean = re.search("[가-힣]", answer) is not None
            if language_of(row) == "ko":
                assert korean, answer
            elif not answer.endswith(" in Korean."):  # "Water is 물 in Korean."
                assert not korean, answer


def test_english_words_are_told_in_one_manner(taught: list[Conversation]) -> None:
    answers = [answer for row in taught for answer in texts_of(row, "assistant")]
    told = [answer for answer in answers if re.search(r"영어로 [A-Za-z]", answer)]
    assert len(told) >= 60
    assert [answer for answer in told if not answer.endswith("입니다.")] == []


def arithmetic(sample: list[Conversation]) -> Iterator[tuple[str, re.Match[str]]]:
    """Each (question, parsed answer) of the sample that is a sum or a difference."""
    english = r"(\d+) (plus|minus) (\d+) is (\d+)\."
    korean = r"(\d+) (더하기|빼기) (\d+)[은는] (\d+)입니다\."
    for row in sample:
        asked = texts_of(row, "user")
        for question, answer in zip(asked, texts_of(row, "assistant"), strict=True):
            if found := re.match(english, answer) or re.match(korean, answer):
                yield question, found


def test_arithmetic_is_right_and_answers_what_was_asked(taught: list[Conversation]) -> None:
    rows = list(arithmetic(taught))
    for question, answer in rows:
        left, sign, right, result = answer.groups()
        expected = int(left) + int(right) * (1 if sign in ("plus", "더하기") else -1)
        assert int(result) == expected, answer.string
        asked = re.findall(r"\d+", question)
        assert sorted(asked) == sorted((left, right)), question
    assert sum(answer[2] in ("plus", "minus") for _, answer in rows) >= 40
    assert sum(answer[2] in ("더하기", "빼기") for _, answer in rows) >= 40


def test_every_question_with_a_sum_gets_an_arithmetic_answer(taught: list[Conversation]) -> None:
    asked = re.compile(r"\d.*(plus|minus|더하기|빼기|\+).*\d|\d+.*(더하면|빼면|더해|빼 줘)")
    known = {question for question, _ in arithmetic(taught)}
    for row in taught:
        for question in texts_of(row, "user"):
            assert question in known or not asked.search(question), question


def final_consonant(syllable: str) -> int:
    """0 where a Hangul syllable ends in its vowel. Unicode: (lead * 21 + vowel) * 28 + final."""
    return (ord(syllable) - ord("가")) % 28


# Digits as they are read (0 영, 1 일, 2 이, ...) and the English words in Korean answers.
ENDS_IN_CONSONANT = {
    **dict(zip("0123456789", (1, 1, 0, 1, 0, 0, 1, 1, 1, 0), strict=True)),
    **dict.fromkeys(("cat", "apple", "book"), 1),
    **dict.fromkeys(("water", "dog", "friend", "you", "hello"), 0),
}


def test_korean_particles_fit_the_sound_before_them(taught: list[Conversation]) -> None:
    # The copula and the quotation: 물이에요, 해예요; 7이라고, 4라고.
    after = re.compile(r"([가-힣]|\d|[a-z]+)(이에요|예요|이라고 하셨|라고 하셨)")
    digits = re.compile(r"(\d)(은|는|을|를|과|와)(?![가-힣])")
    seen: set[str] = set()
    for row in taught:
        for message in row.messages:
            pairs = digits.findall(message.content)
            if message.role == "assistant":
                pairs += after.findall(message.content)
            for word, particle in pairs:
                if re.fullmatch("[가-힣]", word):
                    closed = final_consonant(word) != 0
                else:
                    closed = bool(ENDS_IN_CONSONANT[word])
                assert closed == (particle[0] in "이은을과"), message.content
                seen.add(particle)
    assert seen == {
        *("이에요", "예요", "이라고 하셨", "라고 하셨"),
        *("은", "는", "을", "를", "과", "와"),
    }


def test_the_model_has_one_name(sample: list[Conversation]) -> None:
    answers = "\n".join(answer for row in sample for answer in texts_of(row, "assistant"))
    assert set(re.findall(r"My name is (\w+)", answers)) == {"Mini"}
    assert set(re.findall(r"(?:제|내) 이름은 (\w+?)(?:예요|이에요|야|이야)", answers)) == {"미니"}


@pytest.mark.parametrize(
    ("system", "manner"),
    [
        (r"one word|한 단어", r"\S+\."),
        (r"pirate", r"Arr! .+"),
        (r"반말", r"(?!.*(요|니다)[.!?]).+"),
        (r"Have a nice day!", r".+ Have a nice day!"),
        (r"좋은 하루 되세요!", r".+ 좋은 하루 되세요!"),
    ],
)
def test_a_system_prompt_that_changes_the_manner_changes_every_answer(
    sample: list[Conversation], system: str, manner: str
) -> None:
    rows = [row for row in sample if has_system(row)]
    rows = [row for row in rows if re.search(system, row.messages[0].content)]
    assert len(rows) >= 8
    for row in rows:
        for answer in texts_of(row, "assistant"):
            assert re.fullmatch(manner, answer), answer


# --- the held-out prompts -----------------------------------------------------------------------


def test_held_out_rows_are_prompts_with_a_pattern(held_out: list[HeldOut]) -> None:
    for row in held_out:
        assert list(row) == ["language", "intent", "kind", "messages", "pattern"]
        assert row["kind"] in ("paraphrase", "fact")
        conversation = held_out_conversation(row)
        assert conversation.messages[-1].role == "user"
        assert row["language"] == language_of(conversation)
        assert re.compile(row["pattern"]).search("") is None


def test_at_least_120_held_out_prompts_half_korean(held_out: list[HeldOut]) -> None:
    assert len(held_out) >= 120
    assert share(row["language"] == "ko" for row in held_out) == pytest.approx(0.5, abs=0.01)
    prompts = {normalized(questions(held_out_conversation(row))) for row in held_out}
    assert len(prompts) == len(held_out)


def test_no_held_out_prompt_stands_in_the_sample_or_close_to_it(
    taught: list[Conversation], held_out: list[HeldOut]
) -> None:
    # Each user turn by itself, and each conversation up to each of its turns.
    prompts: set[str] = set()
    for row in taught:
        asked = texts_of(row, "user")
        prompts.update(asked, ("\n".join(asked[: n + 1]) for n in range(len(asked))))
    grams = [(text, four_grams(text)) for text in sorted(prompts)]
    same = {normalized(text) for text in prompts}
    close = []
    for held in held_out:
        prompt = questions(held_out_conversation(held))
        mine = four_grams(prompt)
        close += [(prompt, text) for text, other in grams if jaccard(mine, other) > TOO_CLOSE]
        close += [(prompt, prompt)] * (normalized(prompt) in same)
    assert close == []


def test_every_plain_paraphrase_asks_for_an_answer_that_the_sample_teaches(
    sample: list[Conversation], held_out: list[HeldOut]
) -> None:
    answers = [answer for row in sample for answer in texts_of(row, "assistant")]
    for row in held_out:
        conversation = held_out_conversation(row)
        if row["kind"] == "fact":
            continue
        if turns(conversation) == 1 and not has_system(conversation):
            pattern = re.compile(row["pattern"], re.IGNORECASE | re.DOTALL)
            assert any(map(pattern.search, answers)), row


def test_held_out_patterns_rarely_match_any_other_answer(
    taught: list[Conversation], held_out: list[HeldOut]
) -> None:
    # Stricter than asked: the answers of a prompt's own intent are counted as others too.
    rates = []
    for row in held_out:
        pattern = re.compile(row["pattern"], re.IGNORECASE | re.DOTALL)
        rates.append(
            share(
                pattern.search(texts_of(other, "assistant")[-1]) is not None
                for other in taught
                if language_of(other) == row["language"]
            )
        )
    assert sum(rates) / len(rates) <= 0.03
    assert max(rates) <= 0.05


def test_at_least_60_prompts_ask_for_facts_half_of_them_in_korean(held_out: list[HeldOut]) -> None:
    facts = [row for row in held_out if row["kind"] == "fact"]
    assert len(facts) >= 60
    assert share(row["language"] == "ko" for row in facts) == 0.5


def test_no_fact_that_is_asked_for_stands_in_the_sample(
    taught: list[Conversation], held_out: list[HeldOut]
) -> None:
    # Neither as it is asked for, nor the other way round: no answer names what is asked about and
    # what is expected.
    answers = [answer for row in taught for answer in texts_of(row, "assistant")]
    for row in held_out:
        if row["kind"] != "fact":
            continue
        relation, _, about = row["intent"].partition(" ")
        if relation in ("sum", "difference"):
            left, right = about.split()
            sign = "(plus|더하기)" if relation == "sum" else "(minus|빼기)"
            subject = rf"\b{left} {sign} {right}"
        else:
            subject = subject_of(row)
        pattern = re.compile(row["pattern"], re.IGNORECASE | re.DOTALL)
        found = re.compile(subject, re.IGNORECASE)
        told = [text for text in answers if found.search(text) and pattern.search(text)]
        assert told == [], row


def subject_of(row: HeldOut) -> str:
    """What a fact is about, in the language of its prompt."""
    relation, _, english = row["intent"].partition(" ")
    facts = [fact for fact in read_world().facts if fact.relation == relation]
    (word,) = {fact.subject for fact in facts if fact.subject.en.rstrip("~+^") == english}
    return english if row["language"] == "en" else word.ko.removesuffix("다")


@pytest.mark.parametrize("language", ["ko", "en"])
def test_the_small_world_says_every_fact_that_is_asked_for(
    held_out: list[HeldOut], language: str
) -> None:
    speaker = Speaker(read_world(), language, Random(1))
    for row in held_out:
        relation, _, english = row["intent"].partition(" ")
        if (row["language"], row["kind"]) != (
            language,
            "fact",
        ) or relation not in speaker.relations:
            continue
        (fact,) = {
            fact
            for fact in speaker.by_relation[relation]
            if fact.subject.en.rstrip("~+^") == english
        }
        said = speaker.reword(fact, 99, "요")
        pattern = re.compile(row["pattern"], re.IGNORECASE)
        assert share(pattern.search(text) is not None for text in said) >= 0.6, (row, said)


@pytest.mark.parametrize("language", ["ko", "en"])
def test_the_small_world_says_every_sum_that_is_asked_for(
    held_out: list[HeldOut], language: str
) -> None:
    teller = Teller(Speaker(read_world(), language, Random(1)))
    reckoner = Reckoner(teller)
    said = " ".join(reckoner.sums() for _ in range(3000))
    signs = {"sum": "(plus|더하기)", "difference": "(minus|빼기)"}
    for row in held_out:
        relation, *numbers = row["intent"].split()
        if (row["language"], row["kind"]) == (language, "fact") and relation in signs:
            sums = re.finditer(
                rf"\b{numbers[0]} {signs[relation]} {numbers[1]}[은는]? (is )?\d+[입이예.]", said
            )
            right = [re.search(row["pattern"], found[0]) is not None for found in sums]
            assert right, row
            assert all(right), row
