"""`python -m minimind.chat`: talk to a model in a terminal, or let it answer a pipe's prompts."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from minimind.chat.graphemes import whole_characters
from minimind.chat.prompt_line import KEYS, PromptLine
from minimind.cli.command import following_options, run_command, tell_of_an_unfinished_run
from minimind.cli.decoding import compile_decoding
from minimind.cli.options import parse_options
from minimind.data.conversation import Message
from minimind.data.errors import DataError, printable
from minimind.data.masking import encode_prompt
from minimind.model.pretrained import load, load_system_message
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig, stream_reply
from minimind.terminal import as_it_is
from minimind.tokenizer import Tokenizer
from minimind.training.environment import choose_device

HELP = f"""\
/system TEXT    set the system message; without TEXT, remove it
/undo           remove the last question and its answer
/reset          start a new conversation; the system message stays
/save F.jsonl   append the conversation to a file that minimind.sft reads
/help           this list
{KEYS}
Ctrl-C stops an answer and keeps its text so far; Ctrl-D quits. To begin a question with "/", put a
space before it."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Talk to a model, or let it answer prompts from a pipe.

    In a terminal it is a conversation; /help lists its commands. From a pipe, each line is a prompt
    of its own, and each answer is followed by an empty line.

    Exit codes: 0 done, 1 the run failed, 2 a wrong option, 130 interrupted.
    """

    model: str | None = None
    """A run's folder, another Hugging Face folder, a hub name or a .pth; default: the embedded
    base."""
    tokenizer: str | None = None
    """The folder of a .pth's tokenizer; default: the folder that the .pth is in."""
    prompt: str | None = None
    """Answer this, and exit."""
    system: str | None = None
    """The system message; default: the one that the model was trained with, if any; '' for none."""
    history: bool = True
    """Keep a history of what is typed in a terminal, in ~/.local/state/minimind."""
    compile: bool = False
    """Compile the decoder first, for faster answers."""
    device: str = "auto"
    """auto, cpu or cuda."""
    sampling: Annotated[SampleConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=SampleConfig
    )


@dataclass
class Chat:
    """A conversation, and what happens when someone types a line.

    Attributes:
        config: how the model answers.
        write: takes pieces of answers.
        note: takes sentences about the conversation.
        show_speed: whether to note each answer's length and speed.
        turns: user, assistant, user, assistant, ...: the whole conversation.
        dropped: messages at the beginning of `turns` that no longer fit the context.
    """

    model: Transformer
    tokenizer: Tokenizer
    config: SampleConfig
    system: str | None
    write: Callable[[str], None]
    note: Callable[[str], None]
    show_speed: bool
    turns: list[Message] = field(default_factory=list)
    dropped: int = 0

    def handle(self, line: str) -> None:
        """Run a command or answer a question; an empty line does nothing."""
        commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/undo": self._undo,
            "/reset": self._reset,
            "/save": self._save,
            "/help": lambda _: self.note(HELP),
        }
        name, _, rest = line.partition(" ")
        turns_before = len(self.turns)
        try:
            if not line.startswith("/"):
                if line.strip():
                    self.answer(line.strip())
            elif name in commands:
                commands[name](rest.strip())
            else:
                self.note(f"no command {name}; /help lists them")
        except KeyboardInterrupt:
            kept = len(self.turns) > turns_before
            self.note("stopped; /undo removes it" if kept else "stopped; nothing is kept")
        except (ValueError, OSError) as error:
            self.note(f"error: {error}")

    def answer(self, question: str) -> None:
        """Answer a question piece by piece; an answer that is interrupted is kept so far.

        Raises:
            ValueError: the question is empty or doesn't fit the context; nothing is kept.
        """
        started = time.perf_counter()
        turns = [*self.turns, Message("user", question)]
        dropped = self._count_dropped(turns)
        stream = stream_reply(self.model, self.tokenizer, self._prompt(turns, dropped), self.config)
        if dropped > self.dropped:
            self.note(
                f"the context of {self.context} tokens is full: the model no longer reads the "
                f"first {dropped} messages of this conversation"
            )
        characters = whole_characters(stream)
        text = ""
        try:
            while True:
                piece = next(characters)
                text += piece
                self.write(piece)
        except StopIteration as end:
            ending = end.value
        finally:
            self.write("\n")
            if text:
                self.turns = [*turns, Message("assistant", text)]
                self.dropped = dropped
        speed = ending.tokens / (time.perf_counter() - started)
        if not text:
            self.note("no answer; the question isn't kept")
            return
        if self.show_speed:
            self.note(f"{ending.tokens:,} tokens, {speed:,.1f} tokens/s")
        if ending.finish_reason == "length":
            self.note(
                f"cut: an answer has at most {self.config.max_new_tokens} tokens "
                f"(--max-new-tokens), a conversation {self.context}"
            )

    @property
    def context(self) -> int:
        """Tokens of the prompt and the answer together, at most."""
        return self.model.config.max_position_embeddings

    def _prompt(self, turns: list[Message], dropped: int) -> list[Message]:
        system = [Message("system", self.system)] if self.system else []
        return [*system, *turns[dropped:]]

    def _count_dropped(self, turns: list[Message]) -> int:
        """How many of the oldest messages to drop, so that the prompt and the answer fit."""
        room = self.context - min(self.config.max_new_tokens, self.context // 2)
        dropped = self.dropped
        while (
            dropped + 2 < len(turns)
            and len(encode_prompt(self._prompt(turns, dropped), self.tokenizer)) > room
        ):
            dropped += 2
        return dropped

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self.note(f"system message: {text}" if text else "no system message")

    def _undo(self, _: str) -> None:
        if self.turns:
            self.note(f"removed: {self.turns[-2].content}")
            self.turns, self.dropped = self.turns[:-2], 0
        else:
            self.note("nothing to remove")

    def _reset(self, _: str) -> None:
        self.turns, self.dropped = [], 0
        self.note("a new conversation")

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        if path.suffix != ".jsonl":
            raise ValueError("/save: appends a row to a JSONL file; give a name ending in .jsonl")
        if not self.turns:
            raise ValueError("/save: the conversation is empty; ask something first")
        messages = [{"role": m.role, "content": m.content} for m in self._prompt(self.turns, 0)]
        row = json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"
        with path.open("ab+") as file:
            end = file.tell()
            file.seek(max(0, end - 1))
            needs_newline = file.read() not in (b"", b"\n")
        try:
            with path.open("ab") as file:
                file.write(b"\n" + row if needs_newline else row)
        except OSError:
            os.truncate(path, end)  # a full disk may have taken half of the row
            raise
        self.note(f"appended to {path}")


def converse(chat: Chat, prompt_line: PromptLine) -> None:
    """Read from the terminal until Ctrl-D, or Ctrl-C twice."""
    interrupted = False
    while True:
        try:
            chat.handle(prompt_line.read())
            interrupted = False
        except EOFError:
            return print()
        except KeyboardInterrupt:
            if interrupted:
                return print()
            interrupted = True
            print()
            chat.note("Ctrl-C again or Ctrl-D quits")
        except UnicodeDecodeError:
            chat.note("error: the input isn't UTF-8; set the terminal to UTF-8")


def answer_lines(lines: Iterable[bytes], new_chat: Callable[[], Chat]) -> None:
    """Answer each line on its own; empty lines are skipped, and errors name their line."""
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
    """Load the model, and answer `--prompt`, the terminal or the pipe."""
    with following_options():
        device = choose_device(options.device)
        model, tokenizer = load(options.model, device, tokenizer=options.tokenizer)
        tell_of_an_unfinished_run(options.model)
        system = options.system
        recorded = load_system_message(options.model) if system is None else None
    terminal = options.prompt is None and sys.stdin.isatty()

    def write(text: str) -> None:
        # From a pipe, an answer is data for the next program.
        with nullcontext() if sys.stdout.isatty() else as_it_is(sys.stdout):
            sys.stdout.write(text)
        sys.stdout.flush()

    def note(text: str) -> None:
        if terminal:
            write(f"({text})\n")
        else:
            print(f"note: {text}", file=sys.stderr)

    def new_chat() -> Chat:
        return Chat(model, tokenizer, options.sampling, system, write, note, terminal)

    if recorded:
        system = recorded
        note(f"system message, as in training: {printable(recorded)}; --system '' drops it")
    if options.compile:
        compile_decoding(model, 1, note)
    if options.prompt is not None:
        try:
            new_chat().answer(options.prompt)
        except DataError as error:  # chat has no exit code for data
            raise ValueError(str(error)) from None
    elif terminal:
        print(f"{options.model or 'the embedded base'}. /help lists commands, Ctrl-D quits.")
        converse(new_chat(), PromptLine(_history() if options.history else None, note))
    else:
        answer_lines(sys.stdin.buffer, new_chat)


def _history() -> Path | None:
    """The file with what was typed; None where there is no home folder to keep it in."""
    with suppress(RuntimeError):
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
        return state / "minimind" / "chat_history.jsonl"
    return None


def main(argv: list[str] | None = None) -> int:
    return run_command(
        argv,
        partial(parse_options, "minimind.chat", ChatOptions),
        run,
        out_of_memory=lambda _: "this model; use a smaller --model",
    )


if __name__ == "__main__":
    sys.exit(main())
