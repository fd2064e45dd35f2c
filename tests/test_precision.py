from __future__ import annotations

import pytest
import torch

from minimind.training import precision
from minimind.training.precision import DTYPES, autocast, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def timings(monkeypatch: pytest.MonkeyPatch, bf16: float, fp32: float) -> None:
    seconds = {torch.bfloat16: bf16, torch.float32: fp32}
    monkeypatch.setattr(precision, "_seconds", seconds.__getitem__)


@pytest.mark.parametrize(
    ("bf16", "fp32", "chosen"), [(1.0, 2.0, "bf16"), (2.0, 1.0, "fp32"), (1.0, 1.0, "fp32")]
)
def test_auto_takes_what_is_faster_on_this_cpu(bf16, fp32, chosen, monkeypatch) -> None:
    timings(monkeypatch, bf16, fp32)
    assert resolve_precision("auto", CPU) == chosen


def test_the_probe_itself_decides_in_a_moment() -> None:
    assert resolve_precision("auto", CPU) in ("bf16", "fp32")
    for dtype in (torch.bfloat16, torch.float32):
        assert 0 < precision._seconds(dtype) < 1


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_cuda_is_bf16_only_where_the_hardware_has_it(
    supported, chosen, monkeypatch
) -> None:
    asked = []

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert resolve_precision("auto", CUDA) == chosen
    assert asked == [False]  # emulated bf16 is slower than fp16


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("chosen", DTYPES)
def test_an_explicit_choice_stands_and_nothing_is_probed(chosen, device, monkeypatch) -> None:
    monkeypatch.delattr(precision, "_seconds")
    monkeypatch.delattr(torch.cuda, "is_bf16_supported")
    assert resolve_precision(chosen, device) == chosen


@pytest.mark.parametrize(("chosen", "dtype"), DTYPES.items())
def test_only_products_run_in_the_precision(chosen, dtype) -> None:
    x = torch.ones(2, 2)
    with autocast(chosen, CPU):
        assert (x @ x).dtype == dtype
        assert (x + x).dtype == torch.float32
    assert (x @ x).dtype == torch.float32
