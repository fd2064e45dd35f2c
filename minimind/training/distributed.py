"""Train with the processes that torchrun started. The only place that knows ranks.

Each process trains its share of a step's batches. Weights, gradients and moments are spread over
processes by FSDP2 (`fully_shard`); `size` processes hold one copy, so that there are
processes / size copies:

    size = processes    one copy in all; least memory
    size = 1            one each: what DDP does; least communication, for models that fit
    between             one in each group of `size`, such as a node's GPUs

Gradients are sums over processes, not means: the loss is divided before by all tokens of the step.
Where there is one process, nothing here does anything. Knows no batches and no files.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimind.model.transformer import Transformer
from minimind.training.precision import DTYPES, Precision

# A dead process is noticed at once; this is for one that hangs, and longer than saving takes.
TIMEOUT = timedelta(minutes=30)
PATIENCE = timedelta(days=7)  # while the first process tokenizes

_T = TypeVar("_T")


def init_distributed(device: torch.device) -> None:
    """Meet the other processes: over NCCL for CUDA tensors, over gloo for the CPU's."""
    if not _launched() or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, ranks = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        # torchrun keeps its store when it starts processes again: they would look for dead ones.
        # (Between machines this count differs; TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps there.)
        store = PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=ranks)
    atexit.register(dist.destroy_process_group)


def world_size() -> int:
    """How many train together; 1 before they have met."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    if world_size() > 1:
        return dist.get_rank()
    return int(os.environ["RANK"]) if _launched() else 0


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """Of a machine's GPUs, this process's."""
    if device.type != "cuda" or not _launched():
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def launcher() -> list[str]:
    """What stood before `-m` in the command that started this."""
    if not _launched():
        return ["python"]
    return ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


# Agreeing


@contextmanager
def main_process_first() -> Iterator[None]:
    """The first process alone does what follows, then the others: they find it done."""
    if world_size() == 1:
        yield
        return
    group = dist.new_group(timeout=PATIENCE, backend="gloo")
    if not is_main_process():
        dist.barrier(group)
    yield
    if is_main_process():
        dist.barrier(group)


def broadcast(value: _T) -> _T:
    """The first process's value, everywhere."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def any_rank(flag: bool) -> bool:
    """Whether it is so in any process; the host waits for the other hosts, not for a device."""
    if world_size() == 1:
        return flag
    flags = torch.tensor([flag], dtype=torch.uint8)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def is_loss_of_another(error: RuntimeError) -> bool:
    """Whether an error came up because another process is gone."""
    # gloo's have no type of their own.
    return world_size() > 1 and (isinstance(error, dist.DistError) or "by peer" in str(error))


# Spreading


def shard(model: Transformer, precision: Precision, size: int | None = None) -> None:
    """Spread a model's weights in place, a layer at a time; nothing where there is one process.

    A layer's weights are whole while it computes, in the precision it computes in. Embedding, final
    norm and head are whole in float32 from `Transformer.forward`'s beginning to the end of the
    backward pass.

    Args:
        model: on its device, the same in all processes.
        precision: of the matrix products.
        size: processes that hold one copy together; None for all.

    Raises:
        ValueError: `size` doesn't divide the processes.
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
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    copies = world_size() // size
    mesh = (
        init_device_mesh(model.device.type, (copies, size), mesh_dim_names=("copies", "parts"))
        if copies > 1
        else init_device_mesh(model.device.type, (size,))
    )
    half = MixedPrecisionPolicy(
        param_dtype=None if precision == "fp32" else DTYPES[precision],
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the residual stream stays float32, as in one process
    )
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=half, reshard_after_forward=size > 1)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other factor


def announce_backward(model: nn.Module, last: bool) -> None:
    """Before each micro-batch: copies of the model exchange gradients after the last one only."""
    if world_size() > 1:
        model.set_is_last_backward(last)  # type: ignore[operator]
        model.set_requires_all_reduce(last)  # type: ignore[operator]


@contextmanager
def unsharded(layer: nn.Module) -> Iterator[None]:
    """Inside, a layer has all of its weights without its `forward` being called."""
    if world_size() == 1:
        yield
        return
    layer.unshard()  # type: ignore[operator]
    yield
    layer.reshard()  # type: ignore[operator]


def full_tensor(x: Tensor) -> Tensor:
    """A tensor that may be spread over processes, in one piece."""
    out: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return out


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in one piece on the first process's CPU; nothing in the other processes.

    One after another: a device holds one of them more than before.
    """
    kept = {}
    for name, tensor in tensors.items():
        tensor = full_tensor(tensor.detach())
        if is_main_process():
            kept[name] = tensor.cpu().contiguous()
    return kept


def gather_model(model: Transformer) -> Transformer:
    """The model in one piece: itself, or a copy on the first process's CPU, empty elsewhere."""
    if world_size() == 1:
        return model
    weights = gather(model.state_dict())
    with torch.device("meta"):
        copy = Transformer(model.config)
    if is_main_process():
        copy.load_state_dict(weights, assign=True)
    return copy


def shard_like(other: Tensor, x: Tensor) -> Tensor:
    """What of `x`, in one piece in every process, belongs here as `other` is spread."""
    if world_size() == 1 or not x.ndim:
        return x
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    x = x.to(other.device)
    return distribute_tensor(x, other.device_mesh, other.placements, src_data_rank=None)
