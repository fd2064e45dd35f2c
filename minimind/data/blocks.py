"""Cut a stream into blocks whose size is bounded, whatever the size of one item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from minimind.data.calls import dumps
from minimind.data.conversation import Conversation

Item = TypeVar("Item")
BLOCK_ROWS = 512
BLOCK_CHARACTERS = 2**20  # of a block, or one item's; a token in the making takes some 50 bytes
_A_MESSAGE = 16  # what an empty message counts


def blocks(
    items: Iterable[Item],
    size: Callable[[Item], int],
    most: int = BLOCK_CHARACTERS,
    count: int = BLOCK_ROWS,
) -> Iterator[list[Item]]:
    """Yield items in lists that end with the item that fills them: `most` in size, or `count`."""
    block: list[Item] = []
    filled = 0
    for item in items:
        block.append(item)
        filled += size(item)
        if filled >= most or len(block) >= count:
            yield block
            block, filled = [], 0
    if block:
        yield block


def characters(conversation: Conversation) -> int:
    """The size of a conversation as it counts for a block."""
    size = sum(
        len(message.content) + len(message.reasoning) + _A_MESSAGE
        for message in conversation.messages
    )
    calls = sum(len(call.text) for message in conversation.messages for call in message.calls)
    return size + calls + sum(len(dumps(tool)) for tool in conversation.tools)
