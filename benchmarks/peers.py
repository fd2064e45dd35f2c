"""Others' training loops on the benchmark's rows: transformers, Liger, TRL, litgpt, MiniMind's.

Each where it is installed. All start from the same float32 weights (litgpt's: fresh ones), on the
benchmark's device, under autocast where the precision isn't float32, and do the same conversations
in a round. Sorting by length exchanges conversations between a round's steps, as Hugging Face's
`group_by_length` does.
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
from benchmarks.harness import Measures, synchronize
from benchmarks.padded_decoder import PaddedDecoder
from minimind.data.packing import IGNORE_INDEX
from minimind.training.precision import autocast

if TYPE_CHECKING:
    from benchmarks.train_throughput import Workload

Work = Callable[[], Measures]
Rows = np.ndarray
Cut = Callable[[list[Rows]], list[list[Rows]]]  # a round's steps -> the micro-batches of each step
BASE = Path(minimind.__file__).parent / "base"
PACKAGES = {
    "transformers": "transformers",
    "transformers with Liger": "liger_kernel",
    "litgpt": "litgpt",
    "TRL": "trl",
}
MINIMIND_ROWS = 16  # of each step in MiniMind's loop, by default
PADDED_TOKENS = {"cpu": 8192, "cuda": 32_768}  # of a micro-batch of rows sorted by length, at most


def available(device: torch.device) -> list[str]:
    """Names of the peers whose packages are here and run on the device."""
    here = {name: find_spec(name) is not None for name in set(PACKAGES.values())}
    here["liger_kernel"] &= device.type == "cuda"
    return [name for name in PEERS if here.get(PACKAGES.get(name.split(",")[0], ""), True)]


def padded(workload: Workload, rows: Rows, length: int | None = None) -> tuple[Tensor, Tensor]:
    """(rows, tokens) ids and labels, not yet shifted: padded to the longest, or to `length`.

    Nobody gets a mask of the padding: causal rows that are padded on the right need none, and
    attention is faster without.
    """
    examples = [workload.dataset[int(row)] for row in rows]
    width = length or max(map(len, examples))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, example in enumerate(examples):
        size = min(width, len(example))
        ids[row, :size] = torch.tensor(example.input_ids[:size])
        trained = torch.tensor(example.loss_mask[:size])
        labels[row, :size] = ids[row, :size].masked_fill(~trained, IGNORE_INDEX)
    return ids, labels


def one_at_a_time(steps: list[Rows]) -> list[list[Rows]]:
    return [[rows[i : i + 1] for i in range(len(rows))] for rows in steps]


def by_length(workload: Workload, steps: list[Rows]) -> list[list[Rows]]:
    """A round's rows sorted by length, in as many steps, each cut where it would be too large."""
    lengths = workload.dataset.column("length").astype(np.int64)
    rows = np.concatenate(steps)
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    limit = PADDED_TOKENS[workload.device.type]
    out = []
    for part in np.array_split(rows, len(steps)):
        count = -(-len(part) * int(lengths[part].max()) // limit)
        out.append(np.array_split(part, min(count, len(part))))
    return out


def sixteen(steps: list[Rows]) -> list[list[Rows]]:
    """MiniMind's own step, whatever the others' is."""
    rows = np.concatenate(steps)
    return [[rows[i : i + MINIMIND_ROWS]] for i in range(0, len(rows), MINIMIND_ROWS)]


def loop(
    workload: Workload,
    model: torch.nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    cut: Cut,
    *,
    length: int | None = None,
    fused: bool = True,
) -> Work:
    """A plain loop: micro-batches' mean losses accumulated, clipped, AdamW.

    Args:
        loss_of: ids and labels, (rows, tokens) on the device -> their mean loss.
        length: what rows are padded to; None: to each micro-batch's longest.
        fused: AdamW's kernel.
    """
    device = workload.device
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    rounds = workload.rounds()

    def work() -> Measures:
        rows = next(rounds)
        steps = [[padded(workload, part, length) for part in step] for step in cut(rows)]
        synchronize(device)
        start = time.perf_counter()
        for step in steps:
            count = sum(len(ids) for ids, _ in step)
            for ids, labels in step:
                with autocast(workload.precision, device):
                    loss = loss_of(ids.to(device), labels.to(device))
                (loss * len(ids) / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        synchronize(device)
        seconds = time.perf_counter() - start
        executed = sum(dense_flops(workload.config, *ids.shape) for s in steps for ids, _ in s)
        return workload.measures(rows, seconds, executed) | {"steps": len(steps)}

    return work


def transformers_model(workload: Workload) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**workload.config.to_hf())
    with workload.device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = workload.new_model().state_dict()
    model.load_state_dict(weights, strict=False)  # a tied head's are left out
    return model


def transformers(workload: Workload, cut: Cut, liger: bool = False) -> Work:
    """transformers' model in a plain loop; with Liger's kernels in place of its own."""
    model = transformers_model(workload)
    if liger:
        import liger_kernel.transformers as kernels

        getattr(kernels, f"apply_liger_kernel_to_{model.config.model_type}")(model=model)

    def loss_of(ids: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
        return loss

    return loop(workload, model, loss_of, cut)


def sorted_by_length(workload: Workload, liger: bool = False) -> Work:
    return transformers(workload, partial(by_length, workload), liger)


def minimind_loop(workload: Workload, length: int) -> Work:
    """As MiniMind's own trainer does it: 16 rows a step, padded to one length, unfused AdamW."""
    with workload.device:
        model = PaddedDecoder(workload.config)
    model.load_state_dict(workload.new_model().state_dict(), strict=False)
    return loop(workload, model, model, sixteen, length=length, fused=False)


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
        head_size=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        norm_qk=shape.qk_norm,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    with workload.device:
        model = litgpt.GPT(config)
    if shape.tie_word_embeddings:
        model.lm_head.weight = model.transformer.wte.weight

    def loss_of(ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(ids)[0, :-1], labels[0, 1:])

    return loop(workload, model, loss_of, one_at_a_time)


def trl(workload: Workload, per_batch: int, packing: bool = False) -> Work:
    """TRL's SFTTrainer; `per_batch` conversations, or packed rows, a micro-batch."""
    import datasets
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    model = transformers_model(workload)
    rounds = workload.rounds()
    spent = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: object, **__: object) -> None:
            synchronize(workload.device)
            spent["start"] = time.perf_counter()

        def on_train_end(self, _: object, state: Any, *__: object, **___: object) -> None:
            synchronize(workload.device)
            spent["seconds"] = time.perf_counter() - spent["start"]
            spent["steps"] = state.global_step

    def work() -> Measures:
        steps = next(rounds)
        rows = np.concatenate(steps)
        examples = [workload.dataset[int(row)] for row in rows]
        data = datasets.Dataset.from_dict(
            {
                "input_ids": [example.input_ids for example in examples],
                "completion_mask": [list(map(int, example.loss_mask)) for example in examples],
            }
        )
        micro_batches = 1 if packing else max(1, round(len(rows) / len(steps) / per_batch))
        with tempfile.TemporaryDirectory() as folder:
            options = SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=per_batch,
                gradient_accumulation_steps=micro_batches,
                num_train_epochs=1,
                max_length=4096 if packing else 512,
                packing=packing,
                learning_rate=1e-4,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=workload.device.type == "cpu",
                bf16=workload.precision == "bf16",
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
        executed = None
        if per_batch == 1 and not packing:
            lengths = map(len, examples)
            executed = sum(dense_flops(workload.config, 1, length) for length in lengths)
        measures = workload.measures(steps, spent["seconds"], executed)
        return measures | {"steps": spent["steps"]}

    return work


PEERS: dict[str, Callable[[Workload], Work]] = {
    "transformers, one at a time": partial(transformers, cut=one_at_a_time),
    "transformers, sorted by length": sorted_by_length,
    "transformers with Liger, sorted by length": partial(sorted_by_length, liger=True),
    "litgpt, one at a time": litgpt,
    "TRL, one at a time": partial(trl, per_batch=1),
    "TRL, 16 padded to the longest": partial(trl, per_batch=16),
    "TRL, packing": partial(trl, per_batch=1, packing=True),
    "MiniMind's loop, 16 padded to 512": partial(minimind_loop, length=512),
    "MiniMind's loop, 16 padded to 768": partial(minimind_loop, length=768),
}
