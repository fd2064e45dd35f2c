"""`python -m minimind.pretrain FILES --out RUN`: train a small model from plain text."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from minimind.data.conversation import DataError
from minimind.data.dataset import Dataset
from minimind.data.documents import encode_documents, read_documents
from minimind.data.packing import batches_of, make_steps
from minimind.model.config import ModelConfig
from minimind.model.transformer import Transformer
from minimind.run import (
    Run,
    TrainingError,
    choose_device,
    fail,
    fit,
    peak_memory,
    prepare_terminal,
    versions,
)
from minimind.tokenizer import Tokenizer
from minimind.training.loop import TrainConfig
from minimind.training.precision import Precision

BASE = Path(__file__).parent / "base"

# Qwen3-shaped: q/k norm, grouped queries, tied head.
SMALL = ModelConfig(
    model_type="qwen3",
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    rope_scaling=None,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=True,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Pretrain a model on text files and JSONL rows with a "text"."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Text files, and JSONL files whose rows have a "text"."""
    out: Path
    """The run's folder; a run that is there goes on from its newest checkpoint."""
    config: Path | None = None
    """A config.json of the model's shape; default: 6 layers of width 256."""
    tokenizer: Path = BASE
    """A folder with a tokenizer."""
    epochs: int = 1
    """How often to go over all text."""
    max_length: int = 512
    """Tokens per window; longer documents are cut into several."""
    tokens_per_step: int = 8192
    """Tokens of one optimizer step."""
    tokens_per_batch: int = 8192
    """Tokens in memory at once; changes nothing else."""
    learning_rate: float = 2e-3
    """The peak."""
    hold_back: int = 100
    """Every how many-th window is kept for validation."""
    eval_every: int = 200
    """Steps between two validations."""
    save_every: int = 100
    """Steps between two checkpoints."""
    max_minutes: float | None = None
    """Stop after this long, with a checkpoint to go on from."""
    precision: Precision = "auto"
    """Of the matrix products; weights stay float32."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = field(default=0)
    """Decides the first weights and the order."""

    def __post_init__(self) -> None:
        least = {"epochs": 1, "max_length": 1, "tokens_per_step": 1, "tokens_per_batch": 1}
        for name, low in {**least, "hold_back": 2, "eval_every": 1, "save_every": 0}.items():
            if getattr(self, name) < low:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {getattr(self, name)}; use {low} or more")


def run(options: Options) -> None:
    """Train, and leave a Hugging Face folder in `options.out`."""
    device = choose_device(options.device)
    tokenizer = Tokenizer.load(options.tokenizer)
    shape = SMALL
    if options.config:
        shape = ModelConfig.from_hf(json.loads(options.config.read_text(encoding="utf-8")))
    windows = Dataset.from_examples(
        example
        for file in options.files
        for example in encode_documents(read_documents(file), tokenizer, options.max_length)
    )
    numbers = torch.arange(len(windows))
    held_back = (numbers % options.hold_back == options.hold_back - 1).numpy()
    training, validation = windows.select(~held_back), windows.select(held_back)
    steps = make_steps(
        training,
        tokens_per_step=options.tokens_per_step,
        tokens_per_batch=options.tokens_per_batch,
        epochs=options.epochs,
        seed=options.seed,
    )
    model = Transformer(shape).initialize(options.seed).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {steps.tokens_per_epoch:,} tokens, {len(steps)} steps")
    options.out.mkdir(parents=True, exist_ok=True)
    outcome = fit(
        model,
        tokenizer,
        steps,
        TrainConfig(
            learning_rate=options.learning_rate,
            weight_decay=0.1,
            warmup=0.05,
            precision=options.precision,
        ),
        Run(
            out=options.out,
            validation=batches_of(validation, options.tokens_per_batch),
            eval_every=options.eval_every,
            save_every=options.save_every,
            save_dtype=torch.bfloat16,
            identity={"data": training.hash(), "seed": options.seed},
            say=print,
            max_minutes=options.max_minutes,
        ),
    )
    record = {"options": vars(options), "versions": versions(), "outcome": vars(outcome)}
    text = json.dumps(record, default=str, indent=1)
    (options.out / "run.json").write_text(text + "\n", encoding="utf-8")
    print(
        f"{outcome.steps} steps; loss per held-back token {outcome.first_loss} before, "
        f"{outcome.last_loss} after; peak memory {peak_memory()}"
    )


def main() -> int:
    """Parse the command line and run."""
    prepare_terminal()
    try:
        run(tyro.cli(Options, prog="python -m minimind.pretrain"))
    except (DataError, TrainingError, ValueError, OSError) as error:
        return fail(1, error)
    except KeyboardInterrupt:
        return fail(130, "interrupted; the same command goes on from its last checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
