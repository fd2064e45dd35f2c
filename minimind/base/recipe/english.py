"""Inflect English words: articles, plurals, verb forms. Knows no sentences.

apple -> an apple, apples      milk~ -> milk, milk      scissors+ -> scissors, scissors
sky^ -> the sky, the sky
"""

from __future__ import annotations

PLURALS = dict(
    pair.split(":")
    for pair in (
        "mouse:mice goose:geese sheep:sheep fish:fish deer:deer child:children foot:feet "
        "tooth:teeth man:men woman:women wolf:wolves leaf:leaves knife:knives shelf:shelves "
        "bookshelf:bookshelves scarf:scarves loaf:loaves calf:calves potato:potatoes "
        "tomato:tomatoes goldfish:goldfish firefighter:firefighters fisherman:fishermen "
        "person:people thief:thieves squid:squid grandchild:grandchildren hoof:hooves "
        "starfish:starfish octopus:octopuses ox:oxen snowman:snowmen jellyfish:jellyfish "
        "reindeer:reindeer salmon:salmon cosmos:cosmos mosquito:mosquitoes"
    ).split()
)
DOUBLED = frozenset(
    "stop plan clap hop hug chop mop grab pat knit skip swim run sit dig spin "
    "cut hit put get win".split()
)


def bare(noun: str) -> str:
    """A noun without its mark: milk~ -> milk."""
    return noun.rstrip("~+^")


def with_article(noun: str) -> str:
    """an apple; milk; scissors; the sky; Paris."""
    if noun.endswith("^"):
        return f"the {bare(noun)}"
    if noun.endswith(("~", "+")) or noun[0].isupper():
        return bare(noun)
    silent = noun.startswith(("hour", "honest"))
    y_sound = noun.startswith(("uni", "use", "one", "eu"))
    an = silent or (noun[0] in "aeiou" and not y_sound)
    return f"{'an' if an else 'a'} {noun}"


def plural(noun: str) -> str:
    """apples; milk; scissors; the sky; grains of rice."""
    if noun.endswith("^"):
        return f"the {bare(noun)}"
    if noun.endswith(("~", "+")) or noun[0].isupper():
        return bare(noun)
    if " of " in noun:
        first, _, rest = noun.partition(" of ")
        return f"{plural(first)} of {rest}"
    head, _, last = noun.rpartition(" ")
    if last in PLURALS:
        many = PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        many = last + "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        many = last[:-1] + "ies"
    else:
        many = last + "s"
    return f"{head} {many}".strip()


def third(phrase: str) -> str:
    """eat grass -> eats grass."""
    verb, rest = _split(phrase)
    if verb in ("be", "have", "do", "can"):
        return {"be": "is", "have": "has", "do": "does", "can": "can"}[verb] + rest
    if verb.endswith(("s", "x", "z", "ch", "sh")) or verb == "go":
        return verb + "es" + rest
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies" + rest
    return verb + "s" + rest


def gerund(phrase: str) -> str:
    """make bread -> making bread."""
    verb, rest = _split(phrase)
    if verb.endswith("ie"):
        return verb[:-2] + "ying" + rest
    if verb.endswith("e") and verb not in ("be", "see"):
        return verb[:-1] + "ing" + rest
    return verb + (verb[-1] if verb in DOUBLED else "") + "ing" + rest


def inflect(word: str, form: str, style: str = "") -> str:
    """A word in the form that a template asks for.

    Args:
        form: a (an apple), pl (apples), es, ing; "1 eat" is that verb for one such thing
            (eats), "2 eat" for many (eat; eats, if it isn't counted); empty for the bare word.
        style: Korean has styles; English has none.

    Raises:
        ValueError: no form has that name.
    """
    if form == "":
        return bare(word)
    if form in FORMS:
        return FORMS[form](word)
    many, _, verb = form.partition(" ")
    if many not in ("1", "2") or not verb:
        raise ValueError(
            f"no form is called {form!r}; use {', '.join(FORMS)}, or 1 or 2 and a verb"
        )
    single = (
        word.endswith(("~", "^")) or word[0].isupper() or (many == "1" and not word.endswith("+"))
    )
    if single:
        return third(verb)
    return "are" if verb == "be" else verb


def joined(words: list[str]) -> str:
    """apples, pears and plums."""
    many = [plural(word) for word in words]
    return ", ".join(many[:-1]) + " and " + many[-1]


FORMS = {"a": with_article, "pl": plural, "es": third, "ing": gerund}


def _split(phrase: str) -> tuple[str, str]:
    verb, space, rest = phrase.partition(" ")
    return verb, space + rest
