"""Train with the processes that torchrun started.

Each process trains its share of a step's batches. Weights, gradients and moments are sharded over
processes by FSDP2 (`fully_shard`); `size` processes hold one copy, so that there are
world_size / size copies:

    size = world_size   one copy in all; least memory
    size = 1            one each: what DDP does; least communication, for models that fit
    between             one in each group of `size`, such as a node's GPUs

Gradients are summed over processes, not averaged: each loss is already divided by the supervised
tokens of the complete step. With one process these functions change nothing.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimind.model.transformer import Transformer
from minimind.training.precision import DTYPES, Precision

# For a process that hangs (a dead one is noticed at once); longer than saving takes.
TIMEOUT = timedelta(minutes=30)
TOKENIZE_TIMEOUT = timedelta(days=7)  # while the main process tokenizes

_T = TypeVar("_T")


def init_distributed(device: torch.device) -> None:
    """Join the other processes: NCCL for CUDA tensors, gloo for those on the CPU."""
    if not _launched() or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, ranks = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        # torchrun keeps its store when it restarts processes: they would look for dead ones.
        # (Between machines this count differs; TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps there.)
        store = PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=ranks)
    atexit.register(dist.destroy_process_group)


def world_size() -> int:
    """How many processes train together; 1 before `init_distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    if world_size() > 1:
        return dist.get_rank()
    return int(os.environ["RANK"]) if _launched() else 0


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def local_device(device: torch.device) -> torch.device:
    """This process's GPU among those of its machine."""
    if device.type != "cuda" or not _launched():
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def launcher() -> list[str]:
    """The words before `-m` in the command that started this process."""
    if not _launched():
        return ["python"]
    return ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the block first; the others, after it, find the work done."""
    if world_size() == 1:
        yield
        return
    group = dist.new_group(timeout=TOKENIZE_TIMEOUT, backend="gloo")
    if not is_main_process():
        dist.barrier(group)
    yield
    if is_main_process():
        dist.barrier(group)


def broadcast(value: _T) -> _T:
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def any_rank(flag: bool) -> bool:
    """True if `flag` is set on any rank (a CPU collective: no device is waited for)."""
    return bool(all_reduce_sum(torch.tensor(float(flag))))


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def is_loss_of_another(error: RuntimeError) -> bool:
    """Whether an error was raised because another process has died."""
    # gloo's have no type of their own.
    return world_size() > 1 and (isinstance(error, dist.DistError) or "by peer" in str(error))


def shard(model: Transformer, precision: Precision, size: int | None = None) -> None:
    """Shard a model's weights in place, a layer at a time; with one process do nothing.

    A layer's weights are gathered while it computes, in the precision it computes in. Embedding,
    final norm and head are gathered in float32 from the beginning of `Transformer.hidden_states` to
    the end of the backward pass, so that a loss can use the head.

    Args:
        model: on its device, the same in all processes.
        precision: of the matrix products.
        size: processes that hold one copy together; None for all. It divides their number.
    """
    size = size or world_size()
    if world_size() % size:
        raise ValueError(
            f"--shard is {size} and there are {world_size()} processes; "
            "use a number that divides them"
        )
    if world_size() == 1:
        return
    # Slow to import, and seldom needed.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    shape = (world_size() // size, size) if size < world_size() else (size,)
    names = ("copies", "parts")[-len(shape) :]
    mesh = init_device_mesh(model.device.type, shape, mesh_dim_names=names)
    half = MixedPrecisionPolicy(
        param_dtype=None if precision == "fp32" else DTYPES[precision],
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the residual stream stays float32, as in one process
    )
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=half, reshard_after_forward=size > 1)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden_states")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other factor


def announce_backward(model: nn.Module, last: bool) -> None:
    """Before each micro-batch: copies of the model exchange gradients after the last one only."""
    if world_size() > 1:
        model.set_is_last_backward(last)  # type: ignore[operator]
        model.set_requires_all_reduce(last)  # type: ignore[operator]


def full_tensor(x: Tensor) -> Tensor:
    """A tensor that may be sharded over processes, in one piece."""
    out: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return out


def gather_model(model: Transformer) -> Transformer:
    """The model in one piece: itself, or a copy on the main process's CPU, empty elsewhere."""
    if world_size() == 1:
        return model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    with torch.device("meta"):
        copy = Transformer(model.config)
    if is_main_process():
        copy.load_state_dict(weights, assign=True)
    return copy
