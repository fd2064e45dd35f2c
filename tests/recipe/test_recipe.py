"""The small world is true, its Korean well joined, and what is gathered is filtered by rules."""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.base.recipe import english, filter, gather, korean, world
from minimind.base.recipe.facts import Word, read_world
from minimind.base.recipe.grammar import expand, fill, read_sections
from minimind.base.recipe.statements import FOLDER, GROUPS, Speaker
from minimind.base.recipe.stories import Teller
from minimind.base.recipe.sums import Reckoner, spelled

SAMPLE = Path(__file__).parents[1] / "data" / "conversations.jsonl"
WORDS = st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=1, max_size=5)
LANGUAGES = ("ko", "en")
TEXTS = 2500


@pytest.fixture(scope="module", params=LANGUAGES)
def written(request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    """A language, and texts in it."""
    return request.param, list(islice(world.texts(request.param, seed=3), TEXTS))


# --- Korean -------------------------------------------------------------------------------------


def last_jamo(word: str) -> str:
    """The final consonant as Unicode decomposes it, or "": another way than the module's."""
    last = unicodedata.normalize("NFD", word)[-1]
    return last if "\u11a8" <= last <= "\u11c2" else ""


@given(WORDS)
def test_a_particle_fits_the_sound_before_it(word: str) -> None:
    closed = last_jamo(word) != ""
    for after_consonant, after_vowel in ("은는", "이가", "을를", "과와"):
        expected = after_consonant if closed else after_vowel
        assert korean.particle(word, after_consonant) == word + expected
    assert korean.copula(word, "요") == word + ("이에요" if closed else "예요")
    assert korean.copula(word, "다", past=True) == word + ("이었다" if closed else "였다")


@given(WORDS)
def test_the_direction_takes_ro_after_a_vowel_and_after_rieul(word: str) -> None:
    expected = "로" if last_jamo(word) in ("", "\u11af") else "으로"
    assert korean.particle(word, "으로") == word + expected


def test_a_digit_is_joined_as_it_is_read() -> None:
    topics = "0은 1은 2는 3은 4는 5는 6은 7은 8은 9는 10은 100은"
    directions = "0으로 1로 2로 3으로 4로 5로 6으로 7로 8로 9로 10으로 100으로"
    for form, expected in (("은", topics), ("으로", directions)):
        joined = [korean.particle(number, form) for number in re.findall(r"\d+", expected)]
        assert joined == expected.split()


def test_a_particle_that_never_changes_is_joined_as_it_is() -> None:
    assert korean.particle("apple", "의") == "apple의"


@pytest.mark.parametrize(
    ("word", "present", "plain", "formal", "past"),
    [
        ("먹다", "먹어요", "먹는다", "먹습니다", "먹었어요"),
        ("가다", "가요", "간다", "갑니다", "갔어요"),
        ("오다", "와요", "온다", "옵니다", "왔어요"),
        ("마시다", "마셔요", "마신다", "마십니다", "마셨어요"),
        ("배우다", "배워요", "배운다", "배웁니다", "배웠어요"),
        ("만들다", "만들어요", "만든다", "만듭니다", "만들었어요"),
        ("돕다", "도와요", "돕는다", "돕습니다", "도왔어요"),
        ("줍다", "주워요", "줍는다", "줍습니다", "주웠어요"),
        ("듣다", "들어요", "듣는다", "듣습니다", "들었어요"),
        ("짓다", "지어요", "짓는다", "짓습니다", "지었어요"),
        ("부르다", "불러요", "부른다", "부릅니다", "불렀어요"),
        ("다르다", "달라요", "다르다", "다릅니다", "달랐어요"),
        ("따르다", "따라요", "따른다", "따릅니다", "따랐어요"),
        ("푸르다", "푸르러요", "푸르다", "푸릅니다", "푸르렀어요"),
        ("쓰다", "써요", "쓴다", "씁니다", "썼어요"),
        ("바쁘다", "바빠요", "바쁘다", "바쁩니다", "바빴어요"),
        ("기쁘다", "기뻐요", "기쁘다", "기쁩니다", "기뻤어요"),
        ("춥다", "추워요", "춥다", "춥습니다", "추웠어요"),
        ("파랗다", "파래요", "파랗다", "파랗습니다", "파랬어요"),
        ("하얗다", "하얘요", "하얗다", "하얗습니다", "하얬어요"),
        ("되다", "돼요", "된다", "됩니다", "됐어요"),
        ("쉬다", "쉬어요", "쉰다", "쉽니다", "쉬었어요"),
        ("보내다", "보내요", "보낸다", "보냅니다", "보냈어요"),
        ("행복하다", "행복해요", "행복하다", "행복합니다", "행복했어요"),
        ("노래를 하다", "노래를 해요", "노래를 한다", "노래를 합니다", "노래를 했어요"),
        ("길다", "길어요", "길다", "깁니다", "길었어요"),
        ("크지 않다", "크지 않아요", "크지 않다", "크지 않습니다", "크지 않았어요"),
        ("먹지 않다", "먹지 않아요", "먹지 않는다", "먹지 않습니다", "먹지 않았어요"),
        ("있다", "있어요", "있다", "있습니다", "있었어요"),
    ],
)
def test_verbs_and_adjectives_end_a_sentence_in_each_style(
    word: str, present: str, plain: str, formal: str, past: str
) -> None:
    assert korean.conjugate(word, "-", "요") == present
    assert korean.conjugate(word, "-", "다") == plain
    assert korean.conjugate(word, "-", "니다") == formal
    assert korean.conjugate(word, "+", "요") == past


@pytest.mark.parametrize(
    ("word", "form", "expected"),
    [
        ("먹다", "는", "먹는"),
        ("만들다", "는", "만드는"),
        ("크다", "는", "큰"),
        ("재미있다", "는", "재미있는"),
        ("덥다", "ㄴ", "더운"),
        ("듣다", "ㄴ", "들은"),
        ("짓다", "ㄴ", "지은"),
        ("빨갛다", "ㄴ", "빨간"),
        ("만들다", "ㄹ", "만들"),
        ("먹다", "ㄹ", "먹을"),
        ("가다", "ㄹ", "갈"),
        ("가다", "면", "가면"),
        ("만들다", "면", "만들면"),
        ("먹다", "면", "먹으면"),
        ("듣다", "면", "들으면"),
        ("굽다", "려고", "구우려고"),
        ("낫다", "려면", "나으려면"),
        ("찾다", "러", "찾으러"),
        ("두드리다", "서", "두드려서"),
        ("달다", "다고", "달다고"),
        ("앉다", "고", "앉고"),
    ],
)
def test_verbs_and_adjectives_go_on(word: str, form: str, expected: str) -> None:
    assert korean.conjugate(word, form) == expected


def test_numbers_are_counted_and_read() -> None:
    counted = ["한", "세", "스무", "스물한", "서른다섯", "아흔아홉", "백"]
    assert [korean.counting(n) for n in (1, 3, 20, 21, 35, 99, 100)] == counted
    assert [korean.reading(n) for n in (0, 1, 10, 11, 25, 105)] == [
        "영",
        "일",
        "십",
        "십일",
        "이십오",
        "백오",
    ]


def test_what_has_no_known_sound_or_form_is_refused() -> None:
    with pytest.raises(ValueError, match="neither Hangul nor a digit"):
        korean.particle("apple", "은")
    with pytest.raises(ValueError, match="'사과' is no dictionary form; it ends in 다"):
        korean.conjugate("사과", "-")


# --- English ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "form", "expected"),
    [
        ("apple", "a", "an apple"),
        ("uniform", "a", "a uniform"),
        ("milk~", "a", "milk"),
        ("sky^", "a", "the sky"),
        ("Paris", "a", "Paris"),
        ("cherry", "pl", "cherries"),
        ("day", "pl", "days"),
        ("brush", "pl", "brushes"),
        ("polar bear", "pl", "polar bears"),
        ("mouse", "pl", "mice"),
        ("scissors+", "pl", "scissors"),
        ("dog", "1 be", "is"),
        ("dog", "2 be", "are"),
        ("milk~", "2 be", "is"),
        ("scissors+", "1 have", "have"),
        ("catch mice", "es", "catches mice"),
        ("fly high", "es", "flies high"),
        ("buzz", "es", "buzzes"),
        ("coo", "es", "coos"),
        ("go home", "es", "goes home"),
        ("grain of rice", "pl", "grains of rice"),
        ("salmon", "pl", "salmon"),
        ("make bread", "ing", "making bread"),
        ("lie down", "ing", "lying down"),
        ("glue~", "", "glue"),
    ],
)
def test_english_words_are_inflected(word: str, form: str, expected: str) -> None:
    assert english.inflect(word, form) == expected


def test_a_form_that_english_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no form is called 'dual'"):
        english.inflect("dog", "dual")


def test_numbers_are_spelled() -> None:
    assert [spelled(n) for n in (0, 13, 20, 42, 100, 107)] == [
        *("zero", "thirteen", "twenty", "forty-two", "one hundred", "one hundred and seven"),
    ]


# --- templates and the table --------------------------------------------------------------------


def test_choices_nest_and_sections_are_drawn() -> None:
    made = {expand("[a|<b>] c", {"b": ["d [e|f]"]}, Random(n)) for n in range(40)}
    assert made == {"a c", "d e c", "d f c"}
    with pytest.raises(ValueError, match="no section is called 'g'; there are b"):
        expand("<g>", {"b": []}, Random(0))


def test_a_name_that_is_no_slot_is_itself_the_word() -> None:
    assert fill("{s:은} {먹다:+}.", "ko", {"s": "개"}, "요") == "개는 먹었어요."
    assert fill("{s:a} {s:1 have} legs. so", "en", {"s": "ant"}, "") == "An ant has legs. So"


def test_a_line_of_the_table_gives_a_thing_and_its_facts(tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    table.write_text(
        "# x\n== !color\nred=빨간색\n== fruit=과일\nplum=자두 : color red\n", encoding="utf-8"
    )
    facts = {(fact.relation, fact.subject.en, fact.value.ko) for fact in read_world(table).facts}
    assert ("color", "plum", "빨간색") in facts
    assert ("kind", "plum", "과일") in facts
    assert ("translate", "plum", "자두") in facts


def test_an_order_gives_what_comes_next_or_what_is_more(tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    lines = [
        "== !order day=요일",
        "Monday=월요일",
        "Tuesday=화요일",
        "== !order size=크기",
        "a=ㄱ",
        "b=ㄴ",
        "c=ㄷ",
    ]
    table.write_text("\n".join(lines), encoding="utf-8")
    facts = [(f.relation, f.subject.en, f.value.en) for f in read_world(table).facts]
    assert {("next", "Monday", "Tuesday"), ("next", "Tuesday", "Monday")} <= set(facts)
    assert [fact[1:] for fact in facts if fact[0] == "size"] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_a_value_without_korean_is_an_error_with_its_line(tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    table.write_text("== fruit=과일\nplum=자두 : color red\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"table\.txt:2: nothing says what 'red' is in Korean"):
        read_world(table)


def test_the_world_is_wide() -> None:
    small_world = read_world()
    assert sum(map(len, small_world.things.values())) >= 600
    assert len(small_world.facts) >= 2300
    assert {kind for group in GROUPS for kind in group} <= set(small_world.kinds)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_relation_has_wordings(language: str) -> None:
    templates = read_sections(FOLDER / f"statements.{language}.txt")
    for relation in {fact.relation for fact in read_world().facts}:
        assert len(templates[relation]) >= 3, relation


# --- the texts ----------------------------------------------------------------------------------


def test_texts_are_finished_and_ask_nothing(written: tuple[str, list[str]]) -> None:
    for text in written[1]:
        assert not re.search(r"[?{}\[\]<>|~^@]|\b[QA]:|질문:|답:", text), text
        assert text == text.strip()
        assert "  " not in text


def test_no_two_texts_differ_in_names_alone(written: tuple[str, list[str]]) -> None:
    language, texts = written
    teller = Teller(Speaker(read_world(), language, Random(0)))
    assert len({teller.nameless(text).casefold() for text in texts}) == len(texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_seed_gives_the_same_texts_again_and_another_others(language: str) -> None:
    first, again, other = (list(islice(world.texts(language, s), 50)) for s in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


def test_every_sum_is_right(written: tuple[str, list[str]]) -> None:
    text = "\n".join(written[1])
    number = r"(?<![\d])(\d+)"
    adds = re.findall(rf"{number} (?:plus|\+|더하기) (\d+)(?:[은는]| is| =) (\d+)", text)
    takes = re.findall(rf"{number} (?:minus|-|빼기) (\d+)(?:[은는]| is| =) (\d+)", text)
    takes += re.findall(rf"{number}에서 (\d+)[을를] 빼면 (\d+)", text)
    assert len(adds) > 100
    assert len(takes) > 100
    assert all(int(a) + int(b) == int(c) for a, b, c in adds)
    assert all(int(a) - int(b) == int(c) for a, b, c in takes)


def test_every_scene_counts_rightly() -> None:
    reckoner = Reckoner(Teller(Speaker(read_world(), "en", Random(2))))
    for _ in range(300):
        text = reckoner.scene()
        first, second, *others = map(int, re.findall(r"\d+", text))
        more = re.search(r" more|has .* and a|adds|plus", text)
        assert (first + second if more else first - second) in others, text


def test_particles_after_digits_fit_in_every_text() -> None:
    text = "\n".join(islice(world.texts("ko", seed=4), TEXTS))
    found = re.findall(r"(\d)(은|는|을|를|과|와|이에요|예요)(?![가-힣])", text)
    assert len(found) > 200
    for digit, particle in found:
        assert (particle[0] in "은을과이") == (digit in "013678"), (digit, particle)


def test_a_fact_is_said_subject_first_and_value_first() -> None:
    speaker = Speaker(read_world(), "en", Random(0))
    (fact,) = (f for f in speaker.by_relation["capital"] if f.subject.en == "Germany")
    said = speaker.reword(fact, 99, "")
    assert len(said) == len(set(said)) >= 8
    orders = {text.index("Germany") < text.index("Berlin") for text in said}
    assert orders == {True, False}


def test_not_a_bird_but_a_tool_is_true() -> None:
    speaker = Speaker(read_world(), "en", Random(0))
    for overlapping in (
        *(("bird", other) for other in ("animal", "insect", "food")),
        *(("vehicle", other) for other in ("machine", "tool", "toy")),
        *(("household item", other) for other in ("furniture~", "tool", "kitchen tool")),
        *(("vegetable", other) for other in ("food", "fruit")),
        ("food", "vegetable"),
    ):
        kind, other = overlapping
        assert other not in {speaker.unlike(speaker.world.kinds[kind]).en for _ in range(300)}


def test_no_article_verb_or_plural_is_wrong_in_english() -> None:
    text = "\n".join(islice(world.texts("en", seed=6), TEXTS))
    assert re.findall(r"\ba [aeio]\w*", text) == []
    assert set(re.findall(r"\ban [^aeiou\W]\w*", text)) <= {"an hour"}
    assert re.findall(r"\w+(?:zzs|chs|shs|sss|ooes|xs)\b", text) == []
    assert re.findall(r"\b(?:are 1|1|one) (?:apples|pears|eggs|cups|balls|wheels)\b", text) == []
    assert re.findall(r"There are 1 \w+", text) == []


def test_snow_falls_in_winter_and_no_whale_stands_under_a_tree() -> None:
    for language, wrong in (
        ("en", r"(?:July|August|summer) it snowed|(?:whale|dolphin|seal)s? under a big tree"),
        ("ko", r"(?:7월|8월|여름)에? 눈이 (?:밤새|펑펑|처음으로)|나무 (?:아래|밑)에서 (?:돌)?고래"),
    ):
        found = re.findall(wrong, "\n".join(islice(world.texts(language, seed=7), 3 * TEXTS)))
        assert found == []


WRONG = {
    "en": (
        r"\bthe (?:belly|chest|tail)\b|one of the furniture|to space every day|felt happy",
        r"(?:Once|Long ago) [^.]*\. (?:Yesterday|Last|After school|In [A-Z]\w+) ",
        r"[Ss]quids? (?:walks?|runs?|stands?)|[Aa] whale rested",
    ),
    "ko": (
        r"언니[와가] |개의 집은 집|날마다 (?:열심히 )?우주|(?:단|신|짠|매운) 맛",
        r"옛날[^.]*\. (?:어제|며칠 전에|학교가 끝나고|지난)|나무 위에는 (?:펭귄|타조)",
    ),
}


@pytest.mark.parametrize("language", WRONG)
def test_what_readers_found_wrong_does_not_come_back(language: str) -> None:
    text = "\n".join(islice(world.texts(language, seed=9), 3 * TEXTS))
    assert re.findall("|".join(WRONG[language]), text) == []


def test_plain_korean_texts_stay_plain() -> None:
    for text in islice(world.texts("ko", seed=8), TEXTS):
        told = re.sub(r'"[^"]*"', "", text)
        ends = re.findall(r"([가-힣]+)\.", told)
        polite = [e for e in ends if e[-1] == "요" or last_jamo(e.removesuffix("니다")) == "\u11b8"]
        assert len(polite) in (0, len(ends)), text


def test_words_without_a_known_sound_end_a_sentence_in_each_style() -> None:
    for word, plain, polite in (("milk", "milk이다", "milk입니다"), ("5", "5다", "5입니다")):
        assert korean.inflect(word, "입니다", "다") == plain
        assert korean.inflect(word, "입니다", "요") == polite
    assert korean.inflect("작다", "이다", "다") == "작다이다"
    assert korean.inflect("바다", "이다", "요") == "바다예요"


def test_no_story_of_the_sample_stands_in_the_texts(written: tuple[str, list[str]]) -> None:
    told = "\n".join(written[1])
    for line in SAMPLE.read_text(encoding="utf-8").splitlines():
        for message in json.loads(line)["messages"]:
            if message["role"] == "assistant" and message["content"].count(". ") >= 3:
                assert all(part not in told for part in message["content"].split(". ")), message


def test_the_command_writes_both_languages_up_to_a_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = (tmp_path / "made" / "ko.jsonl", tmp_path / "made" / "en.jsonl")
    world.main(world.Options(out=out, megabytes=0.1, seed=5))
    for path, pattern in zip(out, ("[가-힣]", "[a-z]"), strict=True):
        texts = [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
        assert 45_000 <= sum(len(text.encode()) for text in texts) <= 50_000
        assert sum(bool(re.search(pattern, text)) for text in texts) > 0.9 * len(texts)
    assert "different words" in capsys.readouterr().out


# --- real texts ---------------------------------------------------------------------------------

GOOD = "배우들의 연기가 좋아서 끝까지 재미있게 본 영화였어요."


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("broken", "the text has lost a letter: \ufffd, here", "the text has every letter, here"),
        ("unsafe", "정말 김치녀 같은 소리를 하고 있다는 생각이 든다.", GOOD),
        ("coarse", "이런 쓰레기 같은 영화를 누가 만들었는지 모르겠다.", GOOD),
        (
            "coarse",
            "야한 장면만 많고 줄거리는 없는 영화였습니다.",
            "꼭 봐야한다고 생각하는 영화였습니다. 최고예요.",
        ),
        (
            "coarse",
            "내용이 개판이라서 보다가 그냥 나왔습니다.",
            "날개같이 가벼운 영화라서 즐겁게 보았습니다.",
        ),
        ("short", "좋아요.", GOOD),
        ("few_letters", "1 2 3 4 5 6 7 8 9 10 11 12 = 78, 79, 80", GOOD),
        ("foreign", "Это очень хороший фильм про любовь.", GOOD),
        ("repeated", "정말 재미있게 본 영화였습니다!!!!!!", GOOD),
        ("repeated", "최고최고최고최고 정말 재미있는 영화였습니다.", GOOD),
        (
            "repeated",
            "정말    최고최고최고최고 재미있는 영화였습니다.",
            GOOD.replace(" ", "    ", 1),
        ),
        ("jamo", "정말 재미있는 영화였어요 ㅋㅋ 또 볼게요.", GOOD),
        ("run_together", "정말재미있게본영화였는데또보고싶어요. 또 볼게요.", GOOD),
    ],
)
def test_each_rule_objects_to_its_fault_alone(rule: str, bad: str, good: str) -> None:
    found = filter.objection(bad, filter.REVIEWS)
    assert found is not None
    assert found[0] == rule
    assert found[1]
    assert filter.objection(good, filter.REVIEWS) is None


def test_books_are_cut_at_line_ends_and_lose_nothing() -> None:
    lines = [f"This is line {n} of a book about rain and snow." for n in range(200)]
    cut = list(gather.passages("\n".join(lines)))
    assert "\n".join(cut).split("\n") == lines
    assert all(gather.PASSAGE <= len(text) <= gather.PASSAGE + 100 for text in cut[:-1])


def test_verses_get_back_the_space_between_them() -> None:
    assert list(gather.without_joints("the earth.And the earth was waste")) == [
        "the earth. And the earth was waste"
    ]


def corpus(folder: Path) -> Path:
    """A corpus of three small sources."""
    free = "A cow and a goat walked to the river.\nLicense: [CC-BY]\n Text: Nobody"
    table = "Number and title of each story here"
    kept_back = "A hen and a duck walked to the market.\nLicense: [CC-BY-NC]\n Text: Nobody"
    files = {
        "asp-en.txt": f"{table}\n\n{free}\n\n{kept_back}\n",
        "reviews.ko.txt": f"{GOOD}\n{GOOD}\n이런 쓰레기 같은 영화를 누가 만들었는지 모르겠다.\n",
        "fairytaleqa_sections.en.jsonl": json.dumps({"text": "Once there was a king who sang."}),
    }
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_gathering_keeps_what_is_free_and_clean_and_shows_what_it_rejects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    gather.main(gather.Options(corpus=corpus(tmp_path / "corpus"), out=out))

    def texts(name: str) -> list[str]:
        lines = (out / name).read_text("utf-8").splitlines()
        return [json.loads(line)["text"] for line in lines]

    assert texts("storybooks.en.jsonl") == ["A cow and a goat walked to the river."]
    assert texts("reviews.ko.jsonl") == [GOOD]
    assert texts("fairytales.en.jsonl") == ["Once there was a king who sang."]
    lines = (out / "rejected" / "reviews.ko.jsonl").read_text("utf-8").splitlines()
    rejected = [json.loads(line) for line in lines]
    assert [row["rule"] for row in rejected] == ["duplicate", "coarse"]
    assert rejected[1]["evidence"] == "coarse language: '쓰레기'"
    provenance = json.loads((out / "provenance.json").read_text("utf-8"))
    assert set(provenance) == {"storybooks.en", "reviews.ko", "fairytales.en"}
    assert provenance["reviews.ko"]["license"] == "CC0, e9t/nsmc"
    assert provenance["reviews.ko"]["documents"] == {"kept": 1, "duplicate": 1, "coarse": 1}
    assert "reviews.ko" in capsys.readouterr().out


def test_a_folder_without_wordnet_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(corpus(tmp_path / "corpus")), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["gather", *arguments, "--wordnet", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"data\.noun.*; name the folders of the corpus and"):
        gather.command()


def test_glosses_are_the_commonest_meaning_of_nouns_met_in_texts(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(
        "  1 a license\n00000001 05 n 01 hen 0 000 | adult female chicken  \n"
        "00000002 05 n 01 hen 0 000 | a careful woman  \n",
        encoding="utf-8",
    )
    (tmp_path / "index.noun").write_text(
        "  1 a license\nhen n 2 2 @ ~ 2 1 00000001 00000002  \nbiddy n 1 1 @ 1 0 00000001  \n",
        encoding="utf-8",
    )
    assert list(gather.glosses(tmp_path)) == ["hen: adult female chicken"]


def test_a_word_is_one_meaning_in_both_languages() -> None:
    assert Word("dog", "개") in read_world().about
