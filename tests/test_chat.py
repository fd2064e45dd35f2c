"""Talking, as a person does it: in the terminal, once, and through a pipe."""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minimind.chat import __main__ as chat
from minimind.chat.__main__ import Chat
from minimind.chat.prompt_line import PromptLine
from minimind.data.conversation import Message
from minimind.data.masking import encode_prompt
from minimind.data.reader import read_conversations
from minimind.sampler import SampleConfig
from minimind.tokenizer import Tokenizer
from tests.support.faults import small_disk
from tests.support.scripted import Scripted
from tests.support.terminal import Terminal
from tests.support.tiny import CONFIG, write_base

GREEDY = SampleConfig(temperature=0, max_new_tokens=40)


class Talk(Chat):
    """A chat with a scripted model that remembers what a person would see."""

    def __init__(
        self, tokenizer: Tokenizer, *script: object, config=GREEDY, system=None, show_speed=False
    ) -> None:
        self.pieces, self.notes = [], []
        sinks = self.pieces.append, self.notes.append
        model = Scripted(tokenizer, *script)
        super().__init__(model, tokenizer, config, system, *sinks, show_speed)

    @property
    def shown(self) -> str:
        return "".join(self.pieces)

    def converse(self) -> None:
        chat.converse(self, PromptLine(None, self.notes.append))

    def say(self, *lines: str) -> Talk:
        for line in lines:
            self.handle(line)
        return self

    @property
    def contents(self) -> list[str]:
        return [message.content for message in self.turns]

    @property
    def read(self) -> list[str]:
        """What the model was given last, turn by turn."""
        text = self.tokenizer.decode(self.model.prompts[-1])
        return re.findall(r"<\|im_start\|>(\w+\n.*?)<\|im_end\|>", text, flags=re.DOTALL)


# A conversation


def test_an_answer_is_shown_and_the_next_question_is_asked_after_it(tokenizer) -> None:
    talk = Talk(tokenizer, "안녕하세요!", "잘 지내요.").say("안녕?", "", "  ", "How are you?")
    assert talk.shown == "안녕하세요!\n잘 지내요.\n"
    assert talk.read == ["user\n안녕?", "assistant\n안녕하세요!", "user\nHow are you?"]
    assert talk.contents == ["안녕?", "안녕하세요!", "How are you?", "잘 지내요."]
    assert [message.role for message in talk.turns] == ["user", "assistant"] * 2
    assert talk.notes == []


def test_the_model_reads_what_it_was_trained_on(tokenizer) -> None:
    talk = Talk(tokenizer, "네.", system="Be kind.").say("정말? <|im_end|>")
    messages = [Message("system", "Be kind."), Message("user", "정말? <|im_end|>")]
    assert talk.model.prompts == [encode_prompt(messages, tokenizer)]


def test_system_sets_the_system_message_and_without_a_text_removes_it(tokenizer) -> None:
    talk = Talk(tokenizer).say("/system 짧게 답해.", "a")
    assert talk.read[0] == "system\n짧게 답해."
    talk.say("/system", "b")
    assert talk.read == ["user\nb"]
    assert talk.notes[0] == "system message: 짧게 답해."
    assert "no system message" in talk.notes


def test_undo_takes_back_the_last_question_and_its_answer(tokenizer) -> None:
    talk = Talk(tokenizer, "하나", "둘", "셋").say("1?", "2?", "/undo")
    assert talk.contents == ["1?", "하나"]
    talk.say("3?")
    assert talk.read == ["user\n1?", "assistant\n하나", "user\n3?"]
    talk.say("/undo", "/undo", "/undo")
    assert talk.notes == ["removed: 2?", "removed: 3?", "removed: 1?", "nothing to remove"]


def test_reset_forgets_the_conversation_but_not_the_system_message(tokenizer) -> None:
    talk = Talk(tokenizer, "하나", system="Be kind.").say("1?", "/reset", "2?")
    assert talk.read == ["system\nBe kind.", "user\n2?"]


def test_help_names_every_command_and_an_unknown_one_says_so(tokenizer) -> None:
    talk = Talk(tokenizer).say("/help", "/hepl me")
    for command in ("/system", "/undo", "/reset", "/save", "Ctrl-C", "Ctrl-D"):
        assert command in talk.notes[0]
    assert talk.notes[1] == "no command /hepl; /help lists them"
    assert talk.model.prompts == []


def test_a_space_before_it_makes_a_question_of_a_slash(tokenizer) -> None:
    assert Talk(tokenizer, "A folder.").say(" /etc?").contents == ["/etc?", "A folder."]


# What is saved


def test_what_save_writes_is_a_row_that_training_reads(tokenizer, tmp_path) -> None:
    path = tmp_path / "chats.jsonl"
    talk = Talk(tokenizer, '줄\n바꿈 "x" \u2028 👍🏽', "2", system="S").say(
        "첫째?", f"/save {path}"
    )
    talk.say("둘째?", f"/save {path}")
    assert talk.notes == [f"appended to {path}"] * 2
    assert "첫째?" in path.read_text(encoding="utf-8")
    first, second = read_conversations(path)
    assert second.messages == (Message("system", "S"), *talk.turns)
    assert first.messages == second.messages[:3]


@pytest.mark.parametrize("end", ["", "\n"])
def test_save_adds_to_a_file_and_keeps_what_is_there(tokenizer, tmp_path, end) -> None:
    path = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(row) + end, encoding="utf-8")
    Talk(tokenizer, "네").say("응?", f"/save {path}")
    contents = [[m.content for m in c.messages] for c in read_conversations(path)]
    assert contents == [["a", "b"], ["응?", "네"]]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", "error: /save: appends a row to a JSONL file; give a name ending in .jsonl"),
        ("chats.jsonl.gz", "error: /save: appends a row to a JSONL file; give a name ending"),
        ("no/such/folder/chats.jsonl", "No such file or directory"),
    ],
)
def test_a_save_that_fails_says_so_and_loses_nothing(tokenizer, tmp_path, name, error) -> None:
    talk = Talk(tokenizer, "네").say("응?", f"/save {tmp_path / name}" if name else "/save")
    assert error in talk.notes[0]
    assert talk.contents == ["응?", "네"]
    assert list(tmp_path.iterdir()) == []


def test_a_save_on_a_full_disk_adds_no_half_row(tokenizer, tmp_path) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        path = disk / "chats.jsonl"
        talk = Talk(tokenizer, "네").say("응?", f"/save {path}")
        before = path.read_bytes()
        status = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(status.f_bavail * status.f_bsize))
        for _ in range(60):
            talk.say(f"/save {path}")
        assert "No space left" in talk.notes[-1]
        assert path.read_bytes() == before * (path.stat().st_size // len(before))


def test_an_empty_conversation_is_not_saved(tokenizer, tmp_path) -> None:
    talk = Talk(tokenizer).say(f"/save {tmp_path / 'chats.jsonl'}")
    assert talk.notes == ["error: /save: the conversation is empty; ask something first"]
    assert list(tmp_path.iterdir()) == []


# Ends of all kinds


def test_the_oldest_turns_are_not_read_any_more_when_the_context_is_full_and_it_says_so(
    tokenizer, tmp_path
) -> None:
    talk = Talk(tokenizer, *[f"답 {number}." for number in range(12)], system="Be kind.")
    questions = [f"질문 {number}: {'가나다라 ' * 4}" for number in range(12)]
    for question in questions:
        talk.handle(question)
        assert len(talk.model.prompts[-1]) <= talk.context - GREEDY.max_new_tokens
    assert talk.notes[0] == (
        f"the context of {CONFIG.max_position_embeddings} tokens is full: the model no longer "
        "reads the first 2 messages of this conversation"
    )
    assert len(talk.notes) > 1
    assert f"the first {talk.dropped} messages" in talk.notes[-1]
    assert talk.read[0] == "system\nBe kind."
    assert talk.read[1] == f"user\n{questions[talk.dropped // 2].strip()}"
    assert talk.read[-1] == f"user\n{questions[-1].strip()}"

    talk.say(f"/save {tmp_path / 'all.jsonl'}")
    (saved,) = read_conversations(tmp_path / "all.jsonl")
    assert len(saved.messages) == 1 + 24  # what isn't read isn't lost
    assert talk.say("/undo").dropped == 0


def test_a_question_longer_than_the_context_is_refused_and_the_conversation_goes_on(
    tokenizer,
) -> None:
    talk = Talk(tokenizer, "하나", "둘").say("1?", "가나다 " * 300)
    assert len(talk.notes) == 1
    assert "the model's context of 256 must hold the answer too; shorten it" in talk.notes[0]
    assert talk.say("2?").read == ["user\n1?", "assistant\n하나", "user\n2?"]


def test_an_answer_cut_by_length_is_kept_and_it_says_so(tokenizer) -> None:
    talk = Talk(tokenizer, "하나 둘 셋 넷", config=SampleConfig(max_new_tokens=2)).say("세어 봐")
    assert talk.notes == [
        "cut: an answer has at most 2 tokens (--max-new-tokens), a conversation 256"
    ]
    assert talk.contents[1] == talk.shown.removesuffix("\n") != ""


def test_an_empty_answer_is_not_kept_and_it_says_so(tokenizer) -> None:
    talk = Talk(tokenizer, "").say("응?")
    assert (talk.shown, talk.turns) == ("\n", [])
    assert talk.notes == ["no answer; the question isn't kept"]


def test_an_interrupted_answer_is_kept_as_far_as_it_was_shown(tokenizer) -> None:
    talk = Talk(tokenizer, ["하나 ", KeyboardInterrupt(), "둘"]).say("세어 봐")
    assert talk.shown == "하나 \n"
    assert talk.contents == ["세어 봐", "하나 "]
    assert talk.notes == ["stopped; /undo removes it"]
    assert talk.say("계속").read[1] == "assistant\n하나 "


def test_an_answer_interrupted_before_its_first_word_leaves_no_trace(tokenizer) -> None:
    talk = Talk(tokenizer, "하나", [KeyboardInterrupt()]).say("1?", "2?")
    assert talk.contents == ["1?", "하나"]
    assert talk.notes == ["stopped; nothing is kept"]


def test_an_error_within_an_answer_does_not_end_the_conversation(tokenizer) -> None:
    talk = Talk(tokenizer, ["하나", ValueError("model: broken")], "둘").say("1?", "2?")
    assert talk.notes == ["error: model: broken"]
    assert talk.contents == ["1?", "하나", "2?", "둘"]


def test_an_answer_is_followed_by_its_length_and_speed(tokenizer) -> None:
    script = "하나", "", ["둘", KeyboardInterrupt()]
    speed, *others = Talk(tokenizer, *script, show_speed=True).say("1?", "2?", "3?").notes
    assert others == ["no answer; the question isn't kept", "stopped; /undo removes it"]
    count = len(tokenizer.encode("하나")) + 1
    assert re.fullmatch(rf"{count} tokens, [\d,]+\.\d tokens/s", speed)


FAMILY, BYTES = "👨‍👩‍👧", "뷁"  # several code points; a syllable of several tokens


def test_no_piece_of_an_answer_ends_within_an_emoji_or_a_syllable(tokenizer) -> None:
    assert len(tokenizer.encode(FAMILY)) > 5
    assert len(tokenizer.encode(BYTES)) > 1
    talk = Talk(tokenizer, f"가 {FAMILY} {BYTES}!").say("?")
    assert talk.pieces == ["가", " ", f"{FAMILY} ", BYTES, "!", "\n"]


# The terminal


def keys(*typed: str | BaseException) -> Callable[[str], str]:
    """Stands in for `input`: lines, and keys as the exceptions they become; then Ctrl-D."""
    waiting: Iterator[str | BaseException] = iter([*typed, EOFError()])

    def read(prompt: str) -> str:
        item = next(waiting)
        if isinstance(item, BaseException):
            raise item
        return item

    return read


def test_ctrl_d_leaves_the_terminal(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(builtins, "input", keys("1?"))
    talk = Talk(tokenizer, "하나")
    talk.converse()
    assert talk.contents == ["1?", "하나"]


def test_ctrl_c_at_the_prompt_leaves_only_the_second_time_in_a_row(tokenizer, monkeypatch) -> None:
    ctrl_c = KeyboardInterrupt()
    monkeypatch.setattr(builtins, "input", keys(ctrl_c, "1?", ctrl_c, ctrl_c, "2?"))
    talk = Talk(tokenizer, "하나", "둘")
    talk.converse()
    assert talk.contents == ["1?", "하나"]
    assert talk.notes == ["Ctrl-C again or Ctrl-D quits"] * 2


def test_bytes_that_are_not_utf_8_do_not_end_the_conversation(tokenizer, monkeypatch) -> None:
    broken = UnicodeDecodeError("utf-8", b"\xbe\xc8", 0, 1, "invalid start byte")
    monkeypatch.setattr(builtins, "input", keys(broken, "1?"))
    talk = Talk(tokenizer, "하나")
    talk.converse()
    assert talk.notes == ["error: the input isn't UTF-8; set the terminal to UTF-8"]
    assert talk.contents == ["1?", "하나"]


# The command


@pytest.fixture
def command(tokenizer, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `main` on a scripted model: (its exit code, what it printed, its errors)."""

    def run(
        *arguments: str, script: tuple[object, ...] = (), stdin: bytes = b""
    ) -> tuple[int, str, str]:
        model = Scripted(tokenizer, *script)
        monkeypatch.setattr(chat, "load", lambda *_, **__: (model, tokenizer))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="ascii"))
        try:
            code = chat.main(["--temperature", "0", *arguments])
        except SystemExit as error:  # how tyro ends
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_prompt_is_answered_once(command) -> None:
    assert command("--prompt", "안녕?", script=("안녕하세요!",)) == (0, "안녕하세요!\n", "")


@pytest.mark.parametrize(
    ("terminal", "shown"), [(True, "\\x1b[31m빨강\t\n"), (False, "\x1b[31m빨강\t\n")]
)
def test_what_a_model_says_cannot_steer_a_terminal(command, monkeypatch, terminal, shown) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert command("--prompt", "색은?", script=("\x1b[31m빨강\t",))[1] == shown


def test_each_line_of_a_pipe_is_answered_on_its_own(command) -> None:
    stdin = "\ufeff안녕?\r\n\n  \n/undo\nBye?".encode()
    code, out, err = command(stdin=stdin, script=("안녕하세요!\n반가워요.", "네?", "Bye!"))
    assert (code, out, err) == (0, "안녕하세요!\n반가워요.\n\n네?\n\nBye!\n\n", "")


def test_an_answer_from_a_pipe_that_was_cut_is_noted_beside_it(command) -> None:
    _, out, err = command("--max-new-tokens", "1", stdin=b"?\n", script=("12",))
    assert (out, err[:10]) == ("1\n\n", "note: cut:")


@pytest.mark.parametrize(
    ("stdin", "error"),
    [
        (b"Hi\n\xbe\xc8\xb3\xe7\n", "error: <stdin>:2: not UTF-8 at byte 1; convert it"),
        (b"Hi\n" + b"Hi " * 300, "error: <stdin>:2: prompt: .* must hold the answer too; shorten"),
    ],
)
def test_a_line_that_cannot_be_answered_is_named_after_the_answers_before_it(
    command, stdin, error
) -> None:
    code, out, err = command(stdin=stdin, script=("Hello.",))
    assert (code, out) == (1, "Hello.\n\n")
    assert re.match(error, err)


def test_ctrl_c_ends_a_pipe_with_its_own_exit_code(command) -> None:
    code, out, err = command(stdin=b"1?\n2?\n", script=(["하나", KeyboardInterrupt()],))
    assert (code, out, err) == (130, "하나\n", "error: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--top-p", "2"], "top_p is 2.0; use more than 0, up to 1"),
        (["--top-k", "many"], "many"),
        (["--tempreature", "1"], "tempreature"),
        (["--device", "toaster"], "error: device toaster: .*; use auto, or a device that is here"),
    ],
)
def test_a_wrong_option_is_named_and_ends_with_2(command, arguments, error) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert re.search(error, err)


def test_a_prompt_without_a_word_is_an_error(command) -> None:
    code, out, err = command("--prompt", "")
    assert (code, out) == (1, "")
    assert "empty" in err


def test_a_model_that_is_not_there_is_a_wrong_option(capsys) -> None:
    assert chat.main(["--model", "no/such/model", "--prompt", "?"]) == 2
    assert capsys.readouterr().err.startswith("error: no/such/model: no such directory")


def test_running_out_of_memory_is_one_line(base, monkeypatch, capsys) -> None:
    def answer(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(chat.Chat, "answer", answer)
    assert chat.main(["--model", str(base), "--prompt", "?"]) == 1
    assert "out of memory with this model; use a smaller --model" in capsys.readouterr().err


# The real thing


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def start(base: Path, *arguments: str, state: Path) -> Terminal:
    command = ("-m", "minimind.chat", "--model", str(base), *arguments)
    return Terminal(*command, TERM="dumb", XDG_STATE_HOME=str(state))


def test_a_terminal_shows_answers_survives_ctrl_c_and_leaves_at_ctrl_d(base, tmp_path) -> None:
    # A fixed seed: random weights draw <|im_end|> now and then, and the test waits for the cut.
    options = ("--temperature", "2", "--top-p", "1", "--max-new-tokens", "30", "--seed", "0")
    with start(base, *options, state=tmp_path) as terminal:
        terminal.wait_for("/help lists commands, Ctrl-D quits.")
        terminal.wait_for("> ")
        terminal.interrupt()
        terminal.wait_for("(Ctrl-C again or Ctrl-D quits)")
        terminal.wait_for("> ")
        terminal.type("안녕하\x7f?\n")
        terminal.wait_for("\n")
        shown = terminal.wait_for(
            "(cut: an answer has at most 30 tokens"
        )  # random weights don't stop
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", shown)
        assert re.search(r"\r\n\(30 tokens, [\d,.]+ tokens/s\)\r\n", shown)
        terminal.wait_for("> ")
        terminal.type("/undo\n")
        terminal.wait_for("(removed: 안녕?)")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    kept = tmp_path / "minimind" / "chat_history.jsonl"
    assert kept.read_text(encoding="utf-8") == '"안녕?"\n"/undo"\n'


SCRIPTED = """
import sys
from minimind.chat import __main__ as chat
from minimind.model.pretrained import BASE
from minimind.tokenizer import Tokenizer
from tests.support.scripted import Scripted

tokenizer = Tokenizer.load(BASE)
cut = [[*tokenizer.encode(text)[:-1], KeyboardInterrupt()] for text in sys.argv[1:]]
model = Scripted(tokenizer, *cut, *sys.argv[1:])
chat.load = lambda *_, **__: (model, tokenizer)
sys.exit(chat.main(["--temperature", "0", "--no-history"]))
"""


def test_a_terminal_never_gets_half_an_emoji_or_half_a_syllable(tmp_path) -> None:
    answers = f"가족 {FAMILY}", f"글자 {BYTES}"
    state = str(tmp_path / "state")
    with Terminal("-c", SCRIPTED, *answers, TERM="xterm", XDG_STATE_HOME=state) as terminal:
        for answer in answers:  # broken off before the last token
            terminal.wait_for("> ")
            terminal.type("?\r")
            terminal.wait_for(f"{answer.split()[0]} \r\n(stopped; /undo removes it)")
        for answer in answers:
            terminal.wait_for("> ")
            terminal.type("!\r")
            terminal.wait_for(f"{answer}\r\n(")
            terminal.wait_for(" tokens/s)")
    assert not Path(state).exists()


def test_a_pipe_that_is_closed_early_ends_without_a_traceback(base) -> None:
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-W", "error", "-m", "minimind.chat", "--model", str(base)]
    process = subprocess.Popen([*command, "--max-new-tokens", "200"], **streams)
    process.stdout.close()
    _, errors = process.communicate(b"Hi\n" * 20)
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert b"Exception" not in errors
