"""Turn text into token ids and back, and keep control tokens out of text. Knows no roles or turns.

    encode("1 + 1 = <|im_end|>")   [48, 6069, 252, 48, ...]   never the control token's id
    encode_control("<|im_end|>")   2                          the only way to get it
    decode([48, 2])                "1<|im_end|>"

A text is a part of a conversation, so nothing is put in front of it: neither a BOS nor the space
that sentencepiece puts before a document. A text's bytes are its ids' bytes end to end, so that
ids can be decoded one by one.
"""

from __future__ import annotations

import codecs
import copy
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from minimind.tokenizer.as_trained import choose_bos, write_as_trained
from minimind.tokenizer.files import GENERATION, JSON, TokenizerFiles
from minimind.tokenizer.tokenizer_json import read_json
from minimind.tokenizer.vocabulary import END, SPARE, START, TAGS, THINK

END_OF_TEXT = "<|endoftext|>"
_NO_TOKEN = "\ufffd".encode()  # for an id that no token has
_DEFAULT = re.compile(r"thinking_by_default = (true|false)")  # in a template of ours


class Tokenizer:
    """A base's tokenizer: a Hugging Face `tokenizer.json` or a sentencepiece `.model`.

    Attributes:
        vocab_size: 1 + the largest id.
        bos_id: what a conversation begins with, None if with nothing; docs/mask.md has the rule.
        start_id: the id of `<|im_start|>`.
        end_id: the id of `<|im_end|>`.
        stop_ids: where an answer ends: `end_id`, then the base's own ends.
        end_of_text_id: what separates documents: `<|endoftext|>`, else the base's own.
        pad_id: the base's own; if it has none, or an answer could stop at it, an unused token; None
            if there is none of those either.
        control_ids: every added token, marked special or not, but for unmarked white space, which
            is a word. `encode` never yields one of them, except the base's "unknown" for a
            character that its vocabulary can't write.
        added_chatml: the tokens of ChatML, or of `with_tags`, that the base lacked and got.
        notice: a sentence on how they were added; None if none was.
        base_chat_template: the base's own chat template, which `save` doesn't write.
        framed: whether each answer has a `<think>` block, as where the base's template holds one.
        thinking: of a framed one, whether a prompt asks for reasoning unless it says otherwise.
        fingerprint: a hash over all that decides ids.

    Where a base's files contradict each other about the BOS, loading warns of it.

    Source: BPE, Sennrich et al. 2016 (arXiv:1508.07909); sentencepiece, Kudo & Richardson 2018
        (1808.06226).
    """

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a directory with a `tokenizer.json` or `*.model`, or such a file.

        Raises:
            FileNotFoundError: it isn't there.
            ValueError: it isn't what its name says, or a kind of tokenizer that isn't supported.
        """
        files = TokenizerFiles(Path(path))
        try:
            return cls(files)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"{files.place}: it, or a file beside it, is not laid out as a tokenizer's "
                f"({error!r}); fetch the tokenizer's files again"
            ) from error

    def __init__(self, files: TokenizerFiles, tags: Sequence[str] = ()) -> None:
        self._files = files
        self.base_chat_template = files.pop_chat_template()
        template = self.base_chat_template or ""
        ours = _DEFAULT.search(template)
        self.framed = THINK in template
        self.thinking = self.framed and (
            ours[1] == "true" if ours else "open_thinking" not in template  # MiniMind's is off
        )
        if converted := JSON not in files.contents:
            from minimind.tokenizer.sentencepiece_model import convert_model

            convert_model(files)
        vocabulary = read_json(files)
        self.added_chatml = tuple(t for t in (START, END, *tags) if t not in vocabulary.control)
        self.notice: str | None = None
        if self.added_chatml:
            from minimind.tokenizer.add_chatml import add_chatml

            used = files.named_tokens().values() if tags else ()
            self.notice = add_chatml(files, vocabulary, self.added_chatml, used)
            vocabulary = read_json(files)

        self._encode = vocabulary.encode
        self._control = control = vocabulary.control
        self._token_bytes = [_NO_TOKEN] * vocabulary.size
        for word, id in vocabulary.words.items():
            self._token_bytes[id] = vocabulary.to_bytes(word)
        for name, id in control.items():
            self._token_bytes[id] = name.encode()
        self._unknown = vocabulary.unknown
        self._names = re.compile(
            "|".join(map(re.escape, sorted(filter(None, control), key=len, reverse=True)))
        )
        self.control_ids = frozenset(control.values())
        self._never_encoded = self.control_ids - {control.get(self._unknown or "", -1)}

        named = files.named_tokens()
        self.vocab_size = len(self._token_bytes)
        self.start_id = control[START]
        self.end_id = control[END]
        bos, bos_notice = choose_bos(files, vocabulary, self.base_chat_template, converted)
        if bos_notice:
            warnings.warn(bos_notice, stacklevel=3)
        self.bos_id = None if bos is None else control[bos]
        ends = files.read(GENERATION).get("eos_token_id")
        ends = ends if isinstance(ends, list) else [ends]
        own = named.get("eos_token") or vocabulary.eos or END
        stops = [control[t] for t in (END, END_OF_TEXT, own) if t in control]
        stops += [id for id in ends if type(id) is int and id in self.control_ids]
        self.stop_ids = tuple(dict.fromkeys(stops))
        self.end_of_text_id = self.stop_ids[1] if len(self.stop_ids) > 1 else self.end_id
        pad = self._find_pad(named.get("pad_token", ""), bos)
        self.pad_id = None if pad is None else control[pad]
        write_as_trained(files, vocabulary, bos, pad, self.stop_ids)

        beside = json.dumps([sorted(control.items()), self.bos_id, self._unknown])
        self.fingerprint = hashlib.sha256(files.contents[JSON] + beside.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Encode plain text. What spells a control token becomes ordinary tokens.

        Raises:
            ValueError: the text has a lone surrogate, which UTF-8 can't write.
            TypeError: it isn't a str.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts at once: the same ids, faster.

        Raises:
            ValueError, TypeError: as `encode`.
        """
        texts = list(texts)
        try:
            rows = self._encode(texts)
        except (TypeError, UnicodeError):
            for text in texts:
                _check_text(text)
            raise
        for index, (text, ids) in enumerate(zip(texts, rows, strict=True)):
            spells_unknown = self._unknown is not None and self._unknown in text
            forbidden = self.control_ids if spells_unknown else self._never_encoded
            if not forbidden.isdisjoint(ids):
                rows[index] = self._encode_apart(text)
        return rows

    def encode_control(self, token: str) -> int:
        """Give the id of a control token.

        Raises:
            ValueError: there is none of that name.
        """
        if token not in self._control:
            names = sorted(self._control, key=self._control.__getitem__)
            raise ValueError(
                f"{token!r}: not a control token of this tokenizer; it has "
                f"{', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
            )
        return self._control[token]

    def has_control(self, token: str) -> bool:
        """Whether `encode_control` knows the name."""
        return token in self._control

    def with_tags(self, tags: Iterable[str]) -> Tokenizer:
        """This tokenizer with those of the tags of tools and thinking that it lacks.

        They take slots that the base left spare, else ids at the end, for which a model needs rows.
        """
        missing = [tag for tag in TAGS if tag in tags and tag not in self._control]
        if not missing:
            return self
        grown = Tokenizer(copy.deepcopy(self._files), missing)
        grown.base_chat_template = self.base_chat_template
        return grown.with_framing(self.framed, self.thinking)

    def with_framing(self, framed: bool, thinking: bool) -> Tokenizer:
        """This tokenizer, served in another frame: see `framed` and `thinking`."""
        served = copy.copy(self)
        served.framed, served.thinking = framed, framed and thinking
        return served

    def control_tokens_in(self, text: str) -> list[str]:
        """The control tokens that a text spells, in their order; `encode` makes letters of them."""
        return self._names.findall(text)

    def decode(self, ids: Iterable[int], skip_control: bool = False) -> str:
        """Turn ids into text; bytes that aren't UTF-8 become U+FFFD.

        Args:
            ids: an id without a token (a model may have spare rows) becomes U+FFFD too.
            skip_control: leave control tokens out instead of spelling them.

        Raises:
            ValueError: an id is negative.
        """
        return b"".join(self.token_bytes(id, skip_control) for id in ids).decode("utf-8", "replace")

    def token_bytes(self, id: int, skip_control: bool = False) -> bytes:
        """Give the bytes that a token stands for in a text; a control token spells its name.

        A character may be spread over several tokens: their bytes joined are the text's. With
        `skip_control`, a control token has no bytes.

        Raises:
            ValueError: the id is negative.
        """
        if id < 0:
            raise ValueError(f"{id}: not a token id; leave out labels of -100")
        if skip_control and int(id) in self.control_ids:
            return b""
        return self._token_bytes[id] if id < self.vocab_size else _NO_TOKEN

    def stream_decoder(self, skip_control: bool = False) -> StreamDecoder:
        """Return a decoder that takes one id at a time."""
        return StreamDecoder(self, skip_control)

    def save(self, directory: str | Path) -> None:
        """Write the files, with which other tools make the ids of training.

        They are the base's own, changed where they say something else. A `.model` is saved as a
        tokenizer.json, too. The chat template isn't among them.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.contents.items():
            (directory / name).write_bytes(content)

    def _encode_apart(self, text: str) -> list[int]:
        """Encode a text that came out with a control token: cut inside each, and encode the parts.

        "a<|im_end|>b"  ->  "a<", "|im_end|>b"
        """
        if len(text) == 1:  # the character is a control token by itself: write its bytes
            ordinary = {s: i for i, s in enumerate(self._token_bytes) if i not in self.control_ids}
            try:
                return [ordinary[bytes([byte])] for byte in text.encode()]
            except KeyError:
                raise ValueError(
                    f"{text!r}: in this vocabulary only a control token writes it; "
                    "take it out of the text"
                ) from None
        cuts = [m.start() + 1 for m in self._names.finditer(text) if len(m[0]) > 1]
        # Without cuts, the base's normalizer made the token of other characters: cut in halves.
        cuts = cuts or [len(text) // 2]
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        return [id for ids in self.encode_batch(parts) for id in ids]

    def _find_pad(self, own: str, bos: str | None) -> str | None:
        by_id = sorted(self._control, key=self._control.__getitem__)
        names = [own, *(n for n in by_id if "pad" in n.lower()), *filter(SPARE.fullmatch, by_id)]
        # Where none is meant for it, any other will do (nothing attends to padding), but for a
        # word: transformers would take it out of text.
        others = [name for name in reversed(by_id) if name not in (bos, self._unknown)]
        taken = (*self.stop_ids, self.start_id)
        wanted = [name for name in (*names, *others, self._unknown or "") if name in self._control]
        return next((name for name in wanted if self._control[name] not in taken), None)


class StreamDecoder:
    """Decodes ids one at a time; a character appears once all of its bytes have.

        push(837) ""   push(275) "녕"   push(32) "!"   finish() ""

    The pieces joined are `Tokenizer.decode` of all the ids. After `finish` it can be used again.
    """

    def __init__(self, tokenizer: Tokenizer, skip_control: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Take the next id and return the text that is now certain."""
        return self._utf8.decode(self._tokenizer.token_bytes(id, self._skip_control))

    def finish(self) -> str:
        """Return what is left: U+FFFD if a character was cut short."""
        return self._utf8.decode(b"", final=True)


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text: is {type(text).__name__}; give a str")
    for at, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise ValueError(
                f"text: half a character (U+{ord(character):04X}, a lone surrogate) at {at}; "
                "repair the text where it was made"
            )
