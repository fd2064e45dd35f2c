"""Conversations through transformers: messages as a client sends them, and the saved template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minimind.data.conversation import Message


def as_client(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """OpenAI's dicts, the weights beside them."""
    return [
        {
            "role": message.role,
            "content": message.content,
            "weight": message.weight,
            **({"reasoning_content": message.reasoning} if message.reasoning else {}),
            **(
                {
                    "tool_calls": [
                        {"type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                        for c in message.calls
                    ]
                }
                if message.calls
                else {}
            ),
        }
        for message in messages
    ]


def rendered_text(messages: Sequence[Message]) -> str:
    """Messages without reasoning, calls and tools, as the template writes them."""
    text = ""
    for message, role in zip(messages, ["", *(m.role for m in messages)], strict=False):
        if message.role != "tool":
            text += f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n"
            continue
        if role == "tool":
            text = text.removesuffix("<|im_end|>\n") + "\n"
        else:
            text += "<|im_start|>user\n"
        text += f"<tool_response>\n{message.content}\n</tool_response><|im_end|>\n"
    return text
