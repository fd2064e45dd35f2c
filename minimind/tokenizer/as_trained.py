"""Decide where a base puts its BOS, and write what is trained into a tokenizer's files.

A base's files may say different things, and readers differ in which they believe: transformers 4
and llama.cpp follow `add_bos_token`, transformers 5 the post-processor, chats the template. Files
written here say one thing in every place, so that every reader makes the ids of training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from minimind.tokenizer.files import (
    CONFIG,
    GENERATION,
    JSON,
    SPECIAL_TOKENS,
    Object,
    TokenizerFiles,
)
from minimind.tokenizer.tokenizer_json import flatten, without_prefix_space
from minimind.tokenizer.vocabulary import END, START, Vocabulary

_AS_IT_STANDS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

_STRING = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_TAG = re.compile(  # of Jinja; what a comment or a macro says is written nowhere, or elsewhere
    r"\{#.*?#\}|\{%[-+]?\s*macro\b.*?\bendmacro\s*[-+]?%\}|"
    r"\{(?P<kind>[{%])[-+]?(?P<code>(?:" + _STRING + r"|[^'\"])*?)[-+]?[}%]\}",
    re.DOTALL,
)


def choose_bos(
    files: TokenizerFiles, vocabulary: Vocabulary, template: str | None, converted: bool
) -> tuple[str | None, str | None]:
    """Name the token that stands first, if any, and say where the files contradict each other.

    The first of these that says something decides:

        1. the base's chat template, if what it writes begins with a BOS, named or spelled
        2. add_bos_token in tokenizer_config.json
        3. the post-processor in tokenizer.json
        4. sentencepiece's default (`converted`: there is no tokenizer.json): a BOS if the model
           has one, as Llama's own code and llama.cpp put it
    """
    named = files.named_tokens().get("bos_token")
    bos = named if named in vocabulary.control else vocabulary.bos
    if bos is None or bos == START:  # SmolLM2 calls <|im_start|> its BOS; each turn has that
        return None, None
    says: dict[str, bool] = {}
    if template and _begins_with(bos, template):
        says["its chat template"] = True
    flag = files.read(CONFIG).get("add_bos_token")
    if isinstance(flag, bool):
        says["add_bos_token in tokenizer_config.json"] = flag
    if not converted:
        says["its post-processor"] = vocabulary.before == [bos]
    first = next(iter(says.values()), True)
    if len(set(says.values())) < 2:
        return bos if first else None, None
    puts, leaves = (" and ".join(w for w in says if says[w] is put) for put in (True, False))
    notice = (
        f"{files.place}: {puts} put {bos} first, {leaves} "
        f"{'don' if ' and ' in leaves else 'doesn'}'t; trained and saved "
        f"{'with' if first else 'without'} it"
    )
    return bos if first else None, notice


def _begins_with(bos: str, template: str) -> bool:
    """Whether a template writes the BOS before any other text and before anything of a message.

    A BOS later on may be the end of a turn: many bases have one token for both.
    """
    starts = {"bos_token"}  # names whose text begins with the BOS
    messages = {"messages"}  # names whose text is of messages
    at = 0
    for tag in _TAG.finditer(template):
        if text := template[at : tag.start()].strip():
            return text.startswith(bos)
        at = tag.end()
        code = (tag["code"] or "").strip()
        if tag["kind"] == "{" and not code.startswith("raise_exception"):
            first = _first_written(code, bos, starts, messages)
            if first is not None:
                return first
        elif given := re.match(r"(?:set\s+([\w.]+)\s*=|for\s+([\w\s,]+?)\s+in\b)(.*)", code, re.S):
            names = re.findall(r"[\w.]+", given[1] or given[2])
            if given[1] and _first_written(given[3], bos, starts, messages):
                starts.update(names)
            elif any(_is_of(name, messages) for name in re.findall(r"[\w.]+", given[3])):
                messages.update(names)
    return template[at:].strip().startswith(bos)


def _first_written(code: str, bos: str, starts: set[str], messages: set[str]) -> bool | None:
    """Whether an expression begins with the BOS; None if it may write nothing of either."""
    for match in re.finditer(_STRING + r"|[\w.]+", code):
        part = match[0]
        if part[0] in "'\"":
            if text := part[1:-1].replace("\\n", "").strip():
                return text.startswith(bos)
        elif _is_of(part, starts):
            return True
        elif _is_of(part, messages):
            return False
    return None


def _is_of(name: str, names: set[str]) -> bool:
    return name in names or name.split(".")[0] in names


def write_as_trained(
    files: TokenizerFiles,
    vocabulary: Vocabulary,
    bos: str | None,
    pad: str | None,
    stop_ids: Sequence[int],
) -> None:
    """Change the files in memory: what is saved serves the ids of training."""
    ids = {**vocabulary.words, **vocabulary.control}
    data = files.read(JSON)
    changed = {
        **data,
        "truncation": None,
        "padding": None,
        "normalizer": without_prefix_space(data.get("normalizer")),
        "pre_tokenizer": without_prefix_space(data.get("pre_tokenizer")),
        "added_tokens": [_plain(token, bos) for token in data.get("added_tokens") or []],
    }
    if any(data.get(key) != changed[key] for key in ("normalizer", "pre_tokenizer")):
        changed["decoder"] = without_prefix_space(data.get("decoder"))
    if data["model"].get("dropout"):
        changed["model"] = {**data["model"], "dropout": None}
    if (vocabulary.before, vocabulary.after) != ([bos] if bos else [], []):
        changed["post_processor"] = _post_processor(data.get("post_processor"), bos, ids)
    if any(data.get(key) != value for key, value in changed.items()):
        files.write(JSON, changed)

    roles = {"bos_token": bos, "eos_token": END, "pad_token": pad}
    config = {key: value for key, value in files.read(CONFIG).items() if key != "auto_map"}
    if decoder := config.get("added_tokens_decoder"):
        config["added_tokens_decoder"] = {id: _plain(token, bos) for id, token in decoder.items()}
    if isinstance(extra := config.get("extra_special_tokens"), list):  # transformers 4 wants a dict
        config["additional_special_tokens"] = extra
        del config["extra_special_tokens"]
    config.pop("split_special_tokens", None)  # readers would spell <|im_start|> in letters
    config = _without_foreign(config, vocabulary)
    if config.get("legacy"):  # a space after each control token
        config["legacy"] = False
    config |= {
        # Any other class would split text in its own way, and the ids would differ.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        **roles,
        "add_bos_token": bos is not None,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    files.write(CONFIG, config)
    if SPECIAL_TOKENS in files.contents:
        named = _without_foreign(files.read(SPECIAL_TOKENS), vocabulary)
        kept = {key: token for key, token in named.items() if key not in roles}
        files.write(SPECIAL_TOKENS, kept | {key: token for key, token in roles.items() if token})
    # Nothing about sampling: the base's own settings were meant for the base.
    generation = {
        "bos_token_id": None if bos is None else ids[bos],
        "eos_token_id": list(stop_ids),
        "pad_token_id": None if pad is None else ids[pad],
    }
    files.write(GENERATION, generation)


def _without_foreign(config: Object, vocabulary: Vocabulary) -> Object:
    """Without listed tokens that aren't ours: readers would add them, and take them out of text."""
    listed = config.get("additional_special_tokens")
    if not isinstance(listed, list):
        return config
    names = (
        (token, token.get("content") if isinstance(token, dict) else token) for token in listed
    )
    kept = [token for token, name in names if str(name) in vocabulary.control]
    return {**config, "additional_special_tokens": kept}


def _plain(token: Any, bos: str | None) -> Any:
    """A template's token takes no white space from the text beside it."""
    ours = isinstance(token, dict) and token.get("content") in (START, END, bos)
    return {**token, **_AS_IT_STANDS} if ours else token


def _post_processor(step: Object | None, bos: str | None, ids: dict[str, int]) -> Object | None:
    """What is left of the base's, and what puts the BOS."""
    kept = [one for one in flatten(step) if one["type"] == "ByteLevel"]
    if bos is not None:
        first = {"SpecialToken": {"id": bos, "type_id": 0}}
        texts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
        kept.append(
            {
                "type": "TemplateProcessing",
                "single": [first, texts[0]],
                "pair": [first, *texts],
                "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
            }
        )
    return {"type": "Sequence", "processors": kept} if len(kept) > 1 else next(iter(kept), None)
