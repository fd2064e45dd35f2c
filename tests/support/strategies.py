"""Hypothesis strategies that the test files share. Knows no tokens.

Every text that `texts` draws can be encoded as UTF-8; every conversation that `conversations` draws
is legal, the usual and the unusual alike.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from minimind.data.conversation import Call, Conversation, Message
from minimind.tokenizer.vocabulary import TAGS

# Tests measure properties, not time: a busy machine must not fail them.
settings.register_profile("any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_speed")

CONTROL_LOOKALIKES = (
    "<|im_start|>",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|im_end|>\n<|im_start|>user\n",
    "<|endoftext|>",
    "<|pad|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_response>",
    "<s>",
    "</s>",
    "[INST]",
    "<|im_start",
    "im_end|>",
)
EMOJI = ("👨‍👩‍👧‍👦", "🏳️‍🌈", "🇰🇷", "👍🏽", "☺️", "1️⃣", "\u200d", "\ufe0f")
CONTROLS = (
    "\0",
    "\x1b[31m",
    "\t",
    "\r",
    "\r\n",
    "\n\n",
    "\x7f",
    "\x85",
    "\u2028",
    "\u202e",
    "\ufeff",
)
WORDS = (
    "Hello",
    " world",
    "안녕하세요",
    " 세종대왕",
    "你好",
    " 1 + 1 = 2.",
    "…",
    "def f(x):\n    ",
)

_pieces = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(CONTROL_LOOKALIKES),
    st.sampled_from(EMOJI),
    st.sampled_from(CONTROLS),
    st.text(max_size=8),
    st.text(alphabet=st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), max_size=6),
    st.text(alphabet=st.characters(min_codepoint=0x1100, max_codepoint=0x11FF), max_size=6),  # jamo
    st.text(alphabet=st.characters(min_codepoint=0x3131, max_codepoint=0x318E), max_size=6),
    st.text(alphabet=" \t\n\u00a0\u3000", max_size=3),
    st.text(alphabet="0123456789.,", max_size=6),
)

# What may follow one another without breaking a rule, whatever the order.
_EXCHANGES = (
    ("user", "assistant"),
    ("user", "assistant"),
    ("user", "assistant", "tool", "assistant"),
    ("assistant", "tool", "tool"),
    ("assistant",),
    ("user",),
)


def texts(min_size: int = 0) -> st.SearchStrategy[str]:
    """Text of every kind that has broken a tokenizer; `min_size` is 0 or 1."""
    joined = st.lists(_pieces, max_size=8).map("".join)
    return joined.filter(len) if min_size else joined


def messages(role: str | None = None) -> st.SearchStrategy[Message]:
    """One legal Message, of the role or of any; an assistant's may have a weight, 0 too."""
    if role is None:
        return st.sampled_from(("system", "user", "assistant", "tool")).flatmap(messages)
    weights = st.just(1.0)
    if role == "assistant":
        weights |= st.sampled_from((0.0, 0.25, 0.5, 2.0))
    content = texts(min_size=0 if role == "tool" else 1)
    return st.builds(Message, st.just(role), content, weights)


@st.composite
def conversations(
    draw: st.DrawFn, *, answered: bool = False, max_exchanges: int = 4
) -> Conversation:
    """A legal Conversation.

    Args:
        answered: whether it must have an assistant's message.
        max_exchanges: an exchange is one to four messages.
    """
    exchanges = draw(st.lists(st.sampled_from(_EXCHANGES), min_size=1, max_size=max_exchanges))
    roles = [role for exchange in exchanges for role in exchange]
    if answered and "assistant" not in roles:
        roles.append("assistant")
    if draw(st.booleans()):
        roles.insert(0, "system")
    return Conversation(tuple(draw(messages(role)) for role in roles))


def spells_no_tag(conversation: Conversation) -> bool:
    """Whether its dicts are read as they are: an assistant's tags would be read as data."""
    return not any(tag in m.content for m in conversation.messages for tag in TAGS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts() | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("messages", "conversations", "role", "from", "content", "value", "weight"),
                    *("instruction", "output", "input", "history", "system", "prompt"),
                    *("completion", "type", "text", "tools", "chosen", "user", "assistant"),
                ]
            )
            | texts(),
            inner | st.sampled_from(["user", "assistant", "system", "tool", "gpt", "human"]),
            max_size=5,
        )
    ),
    max_leaves=10,
)


# Tools and reasoning

TOOLS = tuple(
    {"type": "function", "function": {"name": name, "description": text, "parameters": {}}}
    for name, text in (("get_weather", "날씨를 알려 준다."), ("add", "Adds <b>two</b> & more."))
)
_PLAIN_PIECES = st.sampled_from((*WORDS, *EMOJI, ".", "\n\n", " ", "{", '"', "\\n", "<b>", "'"))


def plain_texts(min_size: int = 0) -> st.SearchStrategy[str]:
    """Text that spells no control token and begins with a letter, as templates need it."""
    joined = st.lists(_PLAIN_PIECES | st.text("가나다xyz019 ,.\n", max_size=8), max_size=5)
    text = joined.map(lambda parts: "".join(["가", *parts]))
    return text if min_size else text | st.just("")


_leaves = st.none() | st.booleans() | st.integers() | plain_texts()
_leaves |= st.floats(allow_nan=False, allow_infinity=False)
_values = st.recursive(
    _leaves,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(plain_texts(), some, max_size=2),
    max_leaves=4,
)
_arguments = st.dictionaries(plain_texts(), _values, max_size=3)
calls = st.builds(Call, st.sampled_from(("get_weather", "add", 'a "b"')), _arguments)


@st.composite
def tool_conversations(draw: st.DrawFn, *, reasoning: bool = True) -> Conversation:
    """A legal Conversation with tools, calls and their results, and (if asked for) reasoning."""
    messages = []
    if draw(st.booleans()):
        messages.append(Message("system", draw(plain_texts(min_size=1))))
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(plain_texts(min_size=1))))
        for last in [False] * draw(st.integers(0, 2)) + [True]:
            asked = () if last else tuple(draw(st.lists(calls, min_size=1, max_size=2)))
            thought = draw(plain_texts()) if reasoning else ""
            weight = draw(st.sampled_from((1.0, 1.0, 0.0)))
            content = draw(plain_texts(min_size=0 if asked else 1))
            messages.append(Message("assistant", content, weight, thought, asked))
            messages += [Message("tool", draw(plain_texts())) for _ in asked]
    tools = draw(st.sampled_from(((), TOOLS[:1], TOOLS)))
    return Conversation(tuple(messages), tools=tools)
