"""`python -m minimind.chat`: talk to a model in a terminal, or let it answer a pipe's prompts.

Knows neither the template nor how tokens are chosen.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from minimind.chat.graphemes import whole_characters
from minimind.chat.prompt_line import KEYS, PromptLine
from minimind.cli.command import compile_decoding, following_options, run_command
from minimind.cli.options import parse_options
from minimind.data.conversation import DataError, Message
from minimind.data.masking import encode_prompt
from minimind.model.pretrained import load
from minimind.model.transformer import Transformer
from minimind.sampler import Ending, SampleConfig, stream_reply
from minimind.tokenizer import Tokenizer
from minimind.training.environment import choose_device

HELP = f"""\
/system TEXT    set the system message; without TEXT, remove it
/undo           take back the last question and its answer
/reset          forget the conversation; the system message stays
/save F.jsonl   add the conversation to a file that minimind.sft reads
/help           this list
{KEYS}
Ctrl-C stops an answer and keeps what was said; Ctrl-D leaves. To begin a question with "/", put a
space before it."""

FAINT, RESET = "\033[2m", "\033[0m"

# What would move a terminal's cursor or change its colours is shown, not done.
VISIBLE = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Talk to a model, or let it answer prompts from a pipe.

    In a terminal it is a conversation; /help lists its commands. From a pipe, each line is a prompt
    of its own, and each answer is followed by an empty line.

    Exit codes: 0 done, 1 the run failed, 2 a wrong option, 130 interrupted.
    """

    model: str | None = None
    """A run's folder, another Hugging Face folder or a hub name; default: the embedded base."""
    prompt: str | None = None
    """Answer this, and leave."""
    system: str | None = None
    """A system message to begin with; default: none."""
    history: bool = True
    """Keep what is typed in a terminal for the next time, in ~/.local/state/minimind."""
    compile: bool = False
    """Compile the decoder first, for faster answers."""
    device: str = "auto"
    """auto, cpu or cuda."""
    sampling: Annotated[SampleConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=SampleConfig
    )


class Chat:
    """A conversation: what was said, and what happens when someone says more.

    Args:
        model: a chat model.
        tokenizer: its tokenizer.
        config: how it answers.
        system: its system message.
        write: takes pieces of answers.
        note: takes sentences about the conversation.
        pace: takes an answer's length and speed, in words.

    Attributes:
        turns: user, assistant, user, assistant, ...: all of it, also what is no longer read.
        forgotten: messages at the beginning of `turns` that didn't fit the context any more.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: SampleConfig,
        system: str | None,
        write: Callable[[str], None],
        note: Callable[[str], None],
        pace: Callable[[str], None],
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.system, self.write, self.note, self.pace = system, write, note, pace
        self.turns: list[Message] = []
        self.forgotten = 0

    def take(self, line: str) -> None:
        """Do what a person typed: a command, or a question; nothing for an empty line."""
        commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/undo": self._undo,
            "/reset": self._reset,
            "/save": self._save,
            "/help": lambda _: self.note(HELP),
        }
        name, _, rest = line.partition(" ")
        before = len(self.turns)
        try:
            if not line.startswith("/"):
                if line.strip():
                    self.answer(line.strip())
            elif name in commands:
                commands[name](rest.strip())
            else:
                self.note(f"no command {name}; /help lists them")
        except KeyboardInterrupt:
            kept = len(self.turns) > before
            self.note("stopped; /undo takes it back" if kept else "stopped; nothing is kept")
        except (ValueError, OSError) as error:
            self.note(f"error: {error}")

    def answer(self, question: str) -> None:
        """Answer a question piece by piece. What was said is kept, also if something breaks it off.

        Raises:
            ValueError: the question is empty or doesn't fit the context; nothing is kept.
        """
        started = time.perf_counter()
        asked = [*self.turns, Message("user", question)]
        forgotten = self._forget(asked)
        stream = stream_reply(
            self.model, self.tokenizer, self._read(asked, forgotten), config=self.config
        )
        if forgotten > self.forgotten:
            self.note(
                f"the context of {self.context} tokens is full: of this conversation's questions, "
                f"the model no longer reads the first {forgotten // 2}"
            )
        said: list[str] = []
        ending = Ending(True, 0)

        def pieces() -> Generator[str, None, None]:
            nonlocal ending
            ending = yield from whole_characters(stream)

        try:
            for piece in pieces():
                said.append(piece)
                self.write(piece)
        finally:
            self.write("\n")
            if said:
                self.turns = [*asked, Message("assistant", "".join(said))]
                self.forgotten = forgotten
        speed = ending.tokens / (time.perf_counter() - started)
        if not said:
            self.note("no answer; the question isn't kept")
            return
        self.pace(f"{ending.tokens:,} tokens, {speed:,.1f} tokens/s")
        if not ending.by_itself:
            self.note(
                f"cut: an answer has {self.config.max_new_tokens} tokens at most "
                f"(--max-new-tokens), a conversation {self.context}"
            )

    @property
    def context(self) -> int:
        """Tokens that the model can read and write in all."""
        return self.model.config.max_position_embeddings

    def _read(self, turns: list[Message], forgotten: int) -> list[Message]:
        """What the model is given."""
        system = [Message("system", self.system)] if self.system else []
        return [*system, *turns[forgotten:]]

    def _forget(self, asked: list[Message]) -> int:
        """How many of the oldest messages to leave out, so that question and answer have room."""
        room = self.context - min(self.config.max_new_tokens, self.context // 2)
        forgotten = self.forgotten
        while (
            forgotten + 2 < len(asked)
            and len(encode_prompt(self._read(asked, forgotten), self.tokenizer)) > room
        ):
            forgotten += 2
        return forgotten

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self.note(f"system message: {text}" if text else "no system message")

    def _undo(self, _: str) -> None:
        if self.turns:
            self.note(f"took back: {self.turns[-2].content}")
            self.turns, self.forgotten = self.turns[:-2], 0
        else:
            self.note("nothing to take back")

    def _reset(self, _: str) -> None:
        self.turns, self.forgotten = [], 0
        self.note("a new conversation")

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        if path.suffix != ".jsonl":
            raise ValueError("/save: adds a line of JSON to a file; give a name ending in .jsonl")
        if not self.turns:
            raise ValueError("/save: nothing was said yet; ask something first")
        messages = [{"role": m.role, "content": m.content} for m in self._read(self.turns, 0)]
        row = json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"
        with path.open("ab+") as file:
            file.seek(max(0, file.tell() - 1))
            cut_short = file.read() not in (b"", b"\n")  # a last line without its end
            file.write(b"\n" + row if cut_short else row)
        self.note(f"added to {path}")


def converse(chat: Chat, prompt_line: PromptLine) -> None:
    """Read from the terminal until Ctrl-D, or Ctrl-C twice."""
    interrupted = False
    while True:
        try:
            chat.take(prompt_line.read())
            interrupted = False
        except EOFError:
            return print()
        except KeyboardInterrupt:
            if interrupted:
                return print()
            interrupted = True
            print()
            chat.note("Ctrl-C again or Ctrl-D leaves")
        except UnicodeDecodeError:
            chat.note("error: what was typed isn't UTF-8; set the terminal to it")


def history_file() -> Path:
    """In `$XDG_STATE_HOME`, where the XDG base directories have what was done in a program."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "minimind" / "chat_history.jsonl"


def answer_lines(lines: Iterable[bytes], new_chat: Callable[[], Chat]) -> None:
    """Answer each line on its own; empty ones are passed over.

    Raises:
        ValueError: a line isn't UTF-8, or can't be answered. Earlier answers are written.
    """
    for number, line in enumerate(lines, start=1):
        try:
            prompt = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            if prompt.strip():
                chat = new_chat()
                chat.answer(prompt)
                chat.write("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"<stdin>:{number}: not UTF-8 at byte {error.start + 1}; convert it, for example "
                "with iconv -f CP949 -t UTF-8"
            ) from None
        except ValueError as error:
            raise ValueError(f"<stdin>:{number}: {error}") from None


def run(options: ChatOptions) -> None:
    """Load the model, and talk wherever the prompts come from."""
    with following_options():
        model, tokenizer = load(options.model, device=choose_device(options.device))
    terminal = options.prompt is None and sys.stdin.isatty()

    def write(text: str) -> None:
        sys.stdout.write(text.translate(VISIBLE) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def note(text: str) -> None:
        if terminal:
            write(f"({text})\n")
        else:
            print(f"note: {text}", file=sys.stderr)

    def pace(text: str) -> None:
        if terminal and sys.stdout.isatty():
            faint, reset = ("", "") if os.environ.get("TERM") == "dumb" else (FAINT, RESET)
            print(f"{faint}({text}){reset}")

    def new_chat() -> Chat:
        return Chat(model, tokenizer, options.sampling, options.system, write, note, pace)

    if options.compile:
        compile_decoding(model, 1, note)
    if options.prompt is not None:
        try:
            new_chat().answer(options.prompt)
        except DataError as error:  # chat has no exit code for data
            raise ValueError(str(error)) from None
    elif terminal:
        print(f"{options.model or 'the embedded base'}. /help lists commands, Ctrl-D leaves.")
        converse(new_chat(), PromptLine(history_file() if options.history else None, note))
    else:
        answer_lines(sys.stdin.buffer, new_chat)


def main(argv: list[str] | None = None) -> int:
    return run_command(
        argv,
        partial(parse_options, "minimind.chat", ChatOptions),
        run,
        out_of_memory=lambda _: "this model; use a smaller --model",
    )


if __name__ == "__main__":
    sys.exit(main())
