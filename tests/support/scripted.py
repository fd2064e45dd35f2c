"""A model that says what it is told to, so that tests of talking need no training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.model.cache import KVCache
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from tests.support.tiny import CONFIG


class Scripted(Transformer):
    """Answers prompt after prompt from `script`; `prompts` are the ids it was given.

    An answer is a list of ids, after which it says `<|im_end|>`; or a text; or texts, ids and
    exceptions mixed, of which the latter are raised.
    """

    def __init__(self, tokenizer: Tokenizer, *script: str | Sequence[object]) -> None:
        super().__init__(CONFIG)
        self.tokenizer = tokenizer
        self.script = list(script)
        self.prompts: list[list[int]] = []
        self._coming: list[object] = []

    def prefill(self, prompts: list[Tensor], cache: KVCache) -> Tensor:
        (prompt,) = prompts
        self.prompts.append(prompt.tolist())
        answer = self.script.pop(0) if self.script else ""
        self._coming = []
        for part in [answer] if isinstance(answer, str) else answer:
            self._coming += self.tokenizer.encode(part) if isinstance(part, str) else [part]
        return self._say()

    def decode(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        assert len(input_ids) == 1
        return self._say()

    def _say(self) -> Tensor:
        item = self._coming.pop(0) if self._coming else self.tokenizer.end_id
        if isinstance(item, BaseException):
            raise item
        assert isinstance(item, int)
        logits = torch.full((1, self.config.vocab_size), -30.0)
        logits[0, item] = 30.0
        return logits
