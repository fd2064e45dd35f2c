"""Each rule about the order of turns has the one outcome that its table says, and is counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from minimind.data.build import DataOptions, build_dataset
from minimind.tokenizer import Tokenizer

# Each order breaks one rule only; a role in capitals says nothing.
RULES = {
    "system_not_first": "user system assistant",
    "tool_out_of_place": "user tool assistant",
    "no_messages": "",
    "empty_content": "user ASSISTANT",
    "repeated_user": "user user assistant",
    "repeated_assistant": "user assistant assistant",
    "leading_assistant": "assistant user assistant",
    "trailing_prompt": "user assistant user",
    "no_assistant": "user",
}
REGULAR = ("user assistant", "system user assistant user assistant", "user assistant tool TOOL")
PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
TABLE = {
    name: outcome for outcome, name in re.findall(r"\| (legal|an error)\b[^|]*\| (\w+) \|", PAGE)
}


def row(roles: str) -> str:
    messages = [
        {"role": role.lower(), "content": "" if role.isupper() else f"{number}번"}
        for number, role in enumerate(roles.split())
    ]
    return json.dumps({"messages": messages})


def test_every_rule_of_the_table_is_tested() -> None:
    assert TABLE.keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_the_outcome_of_the_table_and_is_counted(
    name: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*map(row, REGULAR[:2]), row(RULES[name]), row(RULES[name])]))
    _, report, _ = build_dataset([path], tokenizer, DataOptions(on_bad_row="skip"))
    legal = TABLE[name] == "legal"
    assert report.turns == ({name: 2} if legal else {})
    assert report.bad == ({} if legal else {name: 2})
    assert report.rows == (4 if legal else 2)
    assert report.unsupervised == (2 if name == "no_assistant" else 0)


def test_regular_orders_are_not_counted_and_an_answered_tool_is_one_of_them(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(row, [*REGULAR[:2], REGULAR[2] + " assistant"])))
    _, report, _ = build_dataset([path], tokenizer, DataOptions())
    assert (report.rows, report.kept, report.turns, report.bad) == (3, 3, {}, {})
