"""Give a model rows for tokens that were added to its tokenizer after it was loaded."""

from __future__ import annotations

from dataclasses import replace

import torch

from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer


def grow(model: Transformer, tokenizer: Tokenizer) -> Transformer:
    """A model with rows for the tokens that were added to its tokenizer, each the others' mean."""
    new = tokenizer.vocab_size - model.config.vocab_size
    if new <= 0:
        return model
    weights = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            mean = weights[name].float().mean(0, keepdim=True).to(weights[name].dtype)
            weights[name] = torch.cat([weights[name], mean.expand(new, -1)])
    config = replace(model.config, vocab_size=tokenizer.vocab_size)
    with torch.device("meta"):
        grown = Transformer(config)
    grown.load_state_dict(weights, assign=True)
    return grown
