"""Rules find what was planted, and let sound rows be."""

from __future__ import annotations

import random
import re
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.clean import rules as quality
from minimind.clean.rules import DEFAULT, RULES, Thresholds, Verdict, check_conversation
from minimind.data.conversation import Conversation
from minimind.data.errors import DataError
from minimind.text.mojibake import broken_text
from tests.support import planted
from tests.support.strategies import conversations

EACH = 120  # defects planted per rule and language


PLANTED = replace(DEFAULT, max_characters=planted.MAX_CHARACTERS)


def rules_of(messages: list[dict[str, str]], thresholds: Thresholds = DEFAULT) -> set[str]:
    return {verdict.rule for verdict in check_conversation(messages, thresholds=thresholds)}


@pytest.fixture(scope="module")
def flagged() -> dict[str, list[tuple[str, set[str]]]]:
    """Per planted defect: (language, rules that object) of each row; "" for sound rows."""
    pairs = list(planted.pairs())
    languages = {
        "ko": [pair for pair in pairs if planted.korean(pair[0])],
        "en": [pair for pair in pairs if not planted.korean(pair[0])],
    }
    chance = random.Random(0)
    found = {"": [("", rules_of(row, PLANTED)) for row in planted.sound_rows()]}
    for name, plant in planted.PLANTERS.items():
        found[name] = [
            (language, rules_of(plant(chance, chance.choice(some)), PLANTED))
            for language, some in languages.items()
            for _ in range(EACH)
        ]
    return found


def test_there_is_a_planter_for_each_rule() -> None:
    assert set(planted.PLANTERS) == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_recall_and_precision_on_planted_defects_are_at_least_99_percent(flagged, rule) -> None:
    for language in ("ko", "en"):
        rows = [rules for where, rules in flagged[rule] if where == language]
        recall = sum(rule in rules for rules in rows) / len(rows)
        assert recall >= 0.99, language
    right = sum(rule in rules for _, rules in flagged[rule])
    wrong = {
        name: count
        for name, rows in flagged.items()
        if name != rule and rule not in planted.IMPLIES.get(name, set())
        if (count := sum(rule in rules for _, rules in rows))
    }
    assert right / (right + sum(wrong.values())) >= 0.99, wrong


def test_no_rule_objects_to_the_projects_own_sample(flagged) -> None:
    assert [rules for _, rules in flagged[""] if rules] == []


@given(conversations())
def test_whatever_a_legal_row_says_rules_give_verdicts(row: Conversation) -> None:
    for verdict in check_conversation(row):
        assert verdict.rule in RULES
        assert verdict.evidence


def test_evidence_says_what_was_seen() -> None:
    found = check_conversation(planted.chat("안녕?", "..."))
    assert found == [Verdict("empty_answer", "the answer is '...'")]
    (found,) = check_conversation(planted.chat("Why?", "Because</s>"))
    assert found == ("control_tokens", "assistant: '</s>'")


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "가나다라"]), min_size=50, max_size=80))
def test_no_share_of_an_answer_is_more_than_all_of_it(words: list[str]) -> None:
    limits = Thresholds(repeated_ngrams=0.1)
    for verdict in check_conversation(planted.chat("Why?", " ".join(words)), None, limits):
        shares = re.findall(r"(\d+)%", verdict.evidence)
        assert all(0 < int(share) <= 100 for share in shares)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("ha " * 60, "100% of the answer is 'ha ha', 59 times"),  # runs of it overlap
        ("ha " * 30 + " ".join(map(str, range(10, 40))), "50% of the answer is 'ha ha', 29 times"),
        ("a b " * 10 + " ".join(f"w{n}" for n in range(10, 40)), "18% of the answer is"),
    ],
)
def test_the_share_of_a_phrase_counts_each_word_once(answer: str, share: str) -> None:
    limits = Thresholds(repeated_ngrams=0.5)
    (verdict,) = check_conversation(planted.chat("Why?", answer), ["repeated_ngrams"], limits)
    assert verdict.evidence.startswith(share)


def test_rules_are_chosen_by_name_or_are_ones_own() -> None:
    def shouts(conversation: Conversation, limits: Thresholds) -> str | None:
        return "it shouts" if conversation.messages[-1].content.isupper() else None

    row = planted.chat("Why?", "BECAUSE</S>")
    assert check_conversation(row, ["echo"]) == []
    assert check_conversation(row, ["echo", shouts]) == [Verdict("shouts", "it shouts")]
    with pytest.raises(ValueError, match="no rule is called shout; use some of role_order"):
        check_conversation(row, ["shout"])
    with pytest.raises(ValueError, match="two rules are called shouts; give each a name"):
        check_conversation(row, [shouts, shouts])
    with pytest.raises(ValueError, match="rule <lambda> returns 3; return evidence in words"):
        check_conversation(row, [lambda *_: 3])


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        ("unsafe", "야 이 씨발놈아."),
        ("unsafe", "시발, 그만해."),
        ("unsafe", "그냥 죽어버려라."),
        ("unsafe", "You should die."),
        ("refusal", "As an AI language model I can't say."),
        ("refusal", "인공지능 모델이기 때문에 감정이 없어요."),
        ("refusal", "글쎄요. 저는 아직 AI 언어 모델이라서 몰라요."),
    ],
)
def test_unsafe_words_and_refusals_are_found_in_their_forms(rule, answer) -> None:
    assert rules_of(planted.chat("어때? How is it?", answer)) == {rule}


def test_repetitions_are_looked_for_where_a_text_begins(monkeypatch) -> None:
    row = planted.chat("Why?", "abcde " * 20 + "x" * 80 + "y z " * 100)
    assert "repeated_characters" in rules_of(row)
    monkeypatch.setattr(quality, "LONGEST", 110)
    assert rules_of(row) == set()


@pytest.mark.parametrize(
    "mark",
    [
        "###eos_token###",
        "<｜end▁of▁sentence｜>",
        "<eos>",
        "<|im_end|>",
        "</s>",
        "[/INST]",
        "<<SYS>>",
    ],
)
def test_marks_of_templates_are_found_in_every_role(mark) -> None:
    for row in (planted.chat("왜?" + mark, "그래서요."), planted.chat("Why?", "So." + mark)):
        assert rules_of(row) == {"control_tokens"}


@pytest.mark.parametrize("limit", [2, 9, 10, 11, 30])
def test_as_many_repetitions_as_the_threshold_are_too_many(limit) -> None:
    limits = replace(DEFAULT, repeated_unit=limit)
    for count in (limit, limit - 1):
        row = planted.chat("?", f"no {'ab' * count}.")
        found = check_conversation(row, ["repeated_characters"], limits)
        expected = f"'ab' {limit} times in a row"
        assert [verdict.evidence for verdict in found] == [expected] * (count == limit)
    none = replace(DEFAULT, repeated_unit=10**12)
    assert check_conversation(row, ["repeated_characters"], none) == []


def test_a_long_repeated_unit_is_found_though_a_short_one_is_in_it() -> None:
    row = planted.chat("?", ("a" * 12 + "b") * 20)
    (found,) = check_conversation(row, ["repeated_characters"])
    assert found.evidence == "'aaaaaaaaaaaab' 20 times in a row"


def test_a_conversation_may_be_a_row_and_is_no_text() -> None:
    row = {"prompt": "Why?", "completion": "..."}
    assert [verdict.rule for verdict in check_conversation(row)] == ["empty_answer"]
    with pytest.raises(TypeError, match="is not a list; give a list such as"):
        check_conversation("Hello")


def test_messages_that_are_no_conversation_are_refused() -> None:
    with pytest.raises(DataError, match='has role "bot"'):
        check_conversation([{"role": "bot", "content": "Hi"}])


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("2 + 2 = ?", "4"),
        ("A or B?", "B"),
        ("꿀을 만드는 곤충은?", "벌."),
        ("Say something.", "👍"),
        ("안녕하세요", "안녕하세요!"),
        ("'나무'를 영어로 번역해 줘.", "It is called a tree in English."),
        ("Python으로 hello를 출력하는 법은?", "Use print with the text."),  # latin in both
        (
            "정렬 함수를 보여 줘.",
            "```python\ndef sorted_copy(items):\n    return sorted(items)\n```",
        ),
        ("Who wrote it?", "Antoine de Saint-Exupéry, naïve façade — “quoted” … Ærøskøbing ÀÉÎÕÜ"),
        ("웃겨?", "ㅋㅋㅋㅋㅋㅋㅋㅋ 네, 정말 재밌어요!"),
        ("Draw a line.", "Here:\n" + "-" * 80),
        ("시발점이 뭐예요?", "사건이 처음 시작되는 시발점이라는 뜻이에요."),
        ("왜 늦었어요?", "도시발전 때문에 공사가 동시발생했고, 아저씨발이 아팠어요."),
        ("화분은?", "물을 안 줬더니 그냥 죽어버려서 슬펐어요."),
        (
            "What is it for?",
            "It pays if you should die. The child sex ratio is a figure.",
        ),
        ("What is GPT-2?", "GPT-2 is known as an AI language model by OpenAI."),
        ("BERT가 뭐예요?", "BERT는 인공지능 모델이기 때문에 데이터로 배워요."),
        ("Is it safe?", "I cannot help with weapons, but I can tell you about history."),
    ],
)
def test_sound_answers_that_look_odd_are_let_be(question, answer) -> None:
    assert check_conversation(planted.chat(question, answer)) == []


@pytest.mark.parametrize(
    ("rule", "limits", "row"),
    [
        ("too_short", {"min_answer": 20}, planted.chat("Why?", "Because.")),
        ("too_long", {"max_characters": 5}, planted.chat("Why?", "Because.")),
        ("echo", {"echo": 3}, planted.chat("Why?", "why")),
        (
            "repeated_lines",
            {"repeated_lines": 0.0},
            planted.chat("?", "line one\n" + "line 2\n" * 6),
        ),
        (
            "repeated_ngrams",
            {"repeated_ngrams": 0.1},
            planted.chat("?", "a b c d e f g h i j " * 6),
        ),
        ("repeated_characters", {"repeated_unit": 10}, planted.chat("?", "ha" * 12)),
        ("repeated_characters", {"repeated_unit": 3}, planted.chat("?", "ha" * 3)),
        ("other_language", {"other_language": 3}, planted.chat("안녕?", "Hello")),
    ],
)
def test_each_threshold_moves_its_rule(rule, limits, row) -> None:
    strict = replace(DEFAULT, **limits)
    assert [verdict.rule for verdict in check_conversation(row, [rule], strict)] == [rule]
    loose = Thresholds(
        min_answer=0,
        max_characters=10**6,
        repeated_lines=1.0,
        repeated_ngrams=0,
        repeated_unit=10**6,
        echo=10**6,
        other_language=10**6,
    )
    assert check_conversation(row, [rule], loose) == []


@pytest.mark.parametrize("name", [field.name for field in fields(Thresholds)])
def test_thresholds_that_can_not_be_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1; use"):
        replace(DEFAULT, **{name: -1})


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("안녕하세요".encode().decode("latin-1"), "was '안녕하세요'"),
        ("안녕하세요".encode("cp949").decode("latin-1"), "was '안녕하세요'"),
        ("It’s".encode().decode("cp1252"), "was '’'"),
        ("lost \ufffd here", "lost character U+FFFD after 'lost '"),
        ("\x07bell", "control character U+0007 at the beginning"),
    ],
)
def test_broken_text_is_found_and_what_was_meant(text, evidence) -> None:
    assert evidence in str(broken_text(text))


@pytest.mark.parametrize(
    "text", ["Ærøskøbing", "“é”…", "naïve", "ÀÉÎÕÜ", "A\tb\r\nc", "±5 °C", "½÷¼"]
)
def test_text_with_accents_is_not_broken(text) -> None:
    assert broken_text(text) is None
