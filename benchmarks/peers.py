"""Others' training loops on the benchmark's rows: transformers, TRL, litgpt. Each where installed.

All start from the same weights in float32 on the CPU, and do the same conversations, 16 a step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import minimind
from benchmarks.flops import dense_flops
from benchmarks.harness import Measures
from minimind.data.packing import IGNORE_INDEX

if TYPE_CHECKING:
    from benchmarks.train_throughput import Workload

Work = Callable[[], Measures]
BASE = Path(minimind.__file__).parent / "base"
PADDED = 512  # tokens of each row in the loop that pads to the longest that is allowed


def available() -> list[str]:
    """Names of the peers whose packages are here."""
    needs = {"TRL": "trl", "litgpt": "litgpt"}
    return [name for name in PEERS if find_spec(needs.get(name.split(",")[0], "transformers"))]


def row(workload: Workload, index: int) -> tuple[Tensor, Tensor]:
    """(1, tokens) ids and labels of one conversation, labels not yet shifted."""
    example = workload.dataset[int(index)]
    ids = torch.tensor([example.input_ids])
    trained = torch.tensor([example.loss_mask])
    return ids, ids.masked_fill(~trained, IGNORE_INDEX)


def transformers_model(workload: Workload) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**workload.config.to_hf())
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(
        workload.new_model().state_dict(), strict=False
    )  # a tied head is left out
    return model


def loop(
    workload: Workload, model: torch.nn.Module, loss_of: Callable[[np.ndarray], Tensor], pad: int
) -> Work:
    """A plain loop: micro-batches' losses accumulated, clipped, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rounds = workload.rounds()
    model.train()

    def work() -> Measures:
        steps = next(rounds)
        start = time.perf_counter()
        for rows in steps:
            for micro in [rows] if pad else np.split(rows, len(rows)):
                (loss_of(micro) * len(micro) / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - start
        return workload.measures(steps, seconds, plain_flops(workload, steps, pad))

    return work


def plain_flops(workload: Workload, steps: list[np.ndarray], pad: int = 0) -> float:
    """What is computed for each conversation on its own, or padded."""
    lengths = workload.dataset.column("length")[np.concatenate(steps)].tolist()
    return sum(dense_flops(workload.config, 1, pad or length) for length in lengths)


def plain(workload: Workload) -> Work:
    """transformers' model, one conversation at a time."""
    model = transformers_model(workload)

    def loss_of(rows: np.ndarray) -> Tensor:
        ids, labels = row(workload, rows[0])
        loss: Tensor = model(input_ids=ids, labels=labels).loss
        return loss

    return loop(workload, model, loss_of, pad=0)


def padded(workload: Workload) -> Work:
    """transformers' model, 16 rows padded to `PADDED`: how MiniMind's own loop batches."""
    model = transformers_model(workload)

    def loss_of(rows: np.ndarray) -> Tensor:
        parts = [row(workload, index) for index in rows]
        ids = torch.cat([F.pad(i, (0, PADDED - i.size(1))) for i, _ in parts])
        labels = torch.cat([F.pad(x, (0, PADDED - x.size(1)), value=-100) for _, x in parts])
        loss: Tensor = model(input_ids=ids, labels=labels).loss
        return loss

    return loop(workload, model, loss_of, pad=PADDED)


def litgpt(workload: Workload) -> Work:
    """litgpt's model of the same shape (fresh weights), one conversation at a time."""
    import litgpt

    shape = workload.config
    config = litgpt.Config(
        name=shape.model_type,
        block_size=shape.max_position_embeddings,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.num_hidden_layers,
        n_head=shape.num_attention_heads,
        n_query_groups=shape.num_key_value_heads,
        n_embd=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = litgpt.GPT(config)
    if shape.tie_word_embeddings:
        model.lm_head.weight = model.transformer.wte.weight

    def loss_of(rows: np.ndarray) -> Tensor:
        ids, labels = row(workload, rows[0])
        return F.cross_entropy(model(ids)[0, :-1], labels[0, 1:])

    return loop(workload, model, loss_of, pad=0)


def trl(workload: Workload, per_batch: int, packing: bool = False) -> Work:
    """TRL's SFTTrainer; `per_batch` conversations a micro-batch."""
    import datasets
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    model = transformers_model(workload)
    rounds = workload.rounds()
    spent = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: object, **__: object) -> None:
            spent["start"] = time.perf_counter()

        def on_train_end(self, *_: object, **__: object) -> None:
            spent["seconds"] = time.perf_counter() - spent["start"]

    def work() -> Measures:
        steps = next(rounds)
        parts = [row(workload, index) for index in np.concatenate(steps)]
        data = datasets.Dataset.from_dict(
            {
                "input_ids": [ids[0].tolist() for ids, _ in parts],
                "completion_mask": [(x[0] != IGNORE_INDEX).int().tolist() for _, x in parts],
            }
        )
        with tempfile.TemporaryDirectory() as folder:
            options = SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=per_batch,
                gradient_accumulation_steps=1 if packing else len(steps[0]) // per_batch,
                num_train_epochs=1,
                max_length=4096 if packing else 512,
                packing=packing,
                learning_rate=1e-4,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                completion_only_loss=True,
            )
            trainer = SFTTrainer(
                model,
                args=options,
                train_dataset=data,
                processing_class=tokenizer,
                callbacks=[Clock()],
            )
            trainer.train()
        executed = plain_flops(workload, steps) if per_batch == 1 and not packing else None
        return workload.measures(steps, spent["seconds"], executed)

    return work


PEERS: dict[str, Callable[[Workload], Work]] = {
    "plain loop, one at a time": plain,
    "litgpt, one at a time": litgpt,
    "TRL, one at a time": partial(trl, per_batch=1),
    "TRL, 16 padded to the longest": partial(trl, per_batch=16),
    "TRL, packing": partial(trl, per_batch=1, packing=True),
    "16 padded to 512": padded,
}
