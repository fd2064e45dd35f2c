"""What `minimind` exports says what it does and what it raises."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator

import pytest

import minimind


def public() -> Iterator[tuple[str, object]]:
    """Exported functions and classes, and the public methods and properties of the classes."""
    for name in minimind.__all__:
        thing = getattr(minimind, name)
        if not isinstance(thing, str):
            yield name, thing
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                value = value.fget if isinstance(value, property) else value
                value = getattr(value, "__func__", value)  # of a classmethod
                if not member.startswith("_") and inspect.isfunction(value):
                    yield f"{name}.{member}", value


PUBLIC = dict(public())


def raises(thing: object) -> bool:
    """Whether its own lines raise; a class's are those that check its fields."""
    thing = vars(thing).get("__post_init__") if inspect.isclass(thing) else thing
    if thing is None:
        return False
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_does_and_what_it_raises(name: str) -> None:
    docstring = PUBLIC[name].__doc__ or ""
    words = {word.lower() for word in re.findall(r"\w+", docstring)}
    assert len(words - set(re.findall("[a-z]+", name.lower()))) >= 3, docstring
    assert not docstring.startswith(f"{name}("), "dataclass wrote this, nobody else"
    if raises(PUBLIC[name]):
        assert "Raises:" in docstring
