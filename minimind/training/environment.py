"""This process's device, versions and memory."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from minimind.training import distributed
from minimind.version import __version__


def choose_device(name: str) -> torch.device:
    """Turn a name into a device, and switch on TF32 if it is CUDA.

    "auto" is CUDA where there is one, else the CPU; under torchrun, this process's own GPU.

    Raises:
        ValueError: the device isn't there.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            device = torch.device(name)
            torch.zeros((), device=device)
        except (RuntimeError, AssertionError) as error:
            first_line = str(error).splitlines()[0]
            raise ValueError(
                f"device {name}: {first_line}; use auto, or a device that is here"
            ) from error
    device = distributed.local_device(device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what isn't in half precision anyway
    return device


def versions() -> dict[str, str]:
    """What a result depends on besides data and options."""
    found = {"python": platform.python_version(), "threads": str(torch.get_num_threads())}
    names = ("torch", "tokenizers", "safetensors", "numpy")
    return {"minimind": __version__} | found | {name: version(name) for name in names}


def processor() -> str:
    """The CPU's name and the instructions that PyTorch uses of it."""
    name, cpuinfo = platform.processor(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = named[0] if named else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def peak_memory() -> str:
    """The most memory that this process has held at once, and of the GPU where there is one."""
    if sys.platform == "win32":
        import ctypes

        # PROCESS_MEMORY_COUNTERS: its size and page faults in 8 bytes, PeakWorkingSetSize, and more
        counters = (ctypes.c_size_t * 9)(9 * 8)
        this_process = ctypes.c_void_p(-1)
        ctypes.windll.kernel32.K32GetProcessMemoryInfo(this_process, counters, 9 * 8)
        peak = int(counters[1])
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes; KiB on Linux
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = f"{peak / 1e9:.2f} GB"
    if torch.cuda.is_available():
        words += f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU"
    return words
