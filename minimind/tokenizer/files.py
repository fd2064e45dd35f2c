"""Hold a tokenizer's files in memory.

tokenizer.json   Hugging Face's: the vocabulary, how text is split, the added tokens
*.model          sentencepiece's, used where there is no tokenizer.json
beside them      tokenizer_config.json, special_tokens_map.json, added_tokens.json,
                 generation_config.json (where an answer stops)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

JSON = "tokenizer.json"
MODEL = "tokenizer.model"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION = "generation_config.json"
_TEMPLATE = "chat_template.jinja"

Object = dict[str, Any]  # in JSON


class TokenizerFiles:
    """The files' contents by name, the main one's under `JSON` or `MODEL`.

    All are read at once, since `save` may overwrite them. Messages begin with `place`.
    """

    def __init__(self, path: Path) -> None:
        main = path if path.is_file() else _find_main(path)
        names = (JSON, MODEL, CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, GENERATION, _TEMPLATE)
        beside = [main.parent / name for name in (*names, "vocab.json", "merges.txt")]
        refuse_foreign_links(beside if path.is_file() else [main, *beside])
        self.contents = {file.name: file.read_bytes() for file in beside if file.is_file()}
        self.place = str(main)
        if main.suffix == ".model":
            self.contents.pop(JSON, None)
        self.contents[MODEL if main.suffix == ".model" else JSON] = main.read_bytes()
        self._parsed = {
            name: parse_object(self.contents[name], main.parent / name)
            for name in (JSON, CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, GENERATION)
            if name in self.contents
        }

    def read(self, name: str) -> Object:
        """The JSON object in a file (don't change it); empty if there is no such file."""
        return self._parsed.get(name, {})

    def write(self, name: str, value: Object) -> None:
        self.contents[name] = (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
        self._parsed[name] = value

    def pop_chat_template(self) -> str | None:
        config = self.read(CONFIG)
        template = config.get("chat_template")
        if template is not None:
            self.write(CONFIG, {key: config[key] for key in config if key != "chat_template"})
        if isinstance(template, list):  # several: [{"name": "default", "template": ...}, ...]
            template = next((t["template"] for t in template if t["name"] == "default"), None)
        if _TEMPLATE in self.contents:
            template = self.contents.pop(_TEMPLATE).decode(errors="replace")
        return template if isinstance(template, str) else None

    def named_tokens(self) -> dict[str, str]:
        """The special tokens that have a role: {"eos_token": "</s>", ...}."""
        named = {}
        for name in (SPECIAL_TOKENS, CONFIG):
            for role, token in self.read(name).items():
                content = token.get("content") if isinstance(token, dict) else token
                if role in ("bos_token", "eos_token", "pad_token", "unk_token") and content:
                    named[role] = str(content)
        return named


def refuse_foreign_links(files: Iterable[Path]) -> None:
    """Raise a ValueError if a file of a model's folder is a link to a place outside the folder.

    What is read of a model is saved with its runs, and so would be whatever the link names. A blob
    of the hub's cache is the exception: there a model's files are links to blobs.
    """
    for file in files:
        target, folder = (Path(os.path.realpath(path)) for path in (file, file.parent))
        is_blob = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
        if file.is_symlink() and not target.is_relative_to(folder) and not is_blob:
            raise ValueError(
                f"{file}: is a link that leaves its folder, to {target}; put the file itself there"
            )


def parse_object(content: bytes, path: Path) -> Object:
    """Parse a file that must hold one JSON object."""
    try:
        value = json.loads(content)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: not JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds no JSON object; fetch the file again")
    return value


def _find_main(directory: Path) -> Path:
    models = sorted(directory.glob("*.model"))
    for path in (directory / JSON, directory / MODEL, *(models if len(models) == 1 else [])):
        if path.is_file():
            return path
    fact = ", ".join(model.name for model in models) or f"no {JSON} and no .model"
    fact = fact if directory.is_dir() else "no such directory"
    raise FileNotFoundError(
        f"{directory}: {fact}; give a directory with a {JSON} or one sentencepiece .model"
    )
