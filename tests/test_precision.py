from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch

from minimind.documents import Documents
from minimind.training import precision
from minimind.training.precision import DTYPES, autocast, choose_precision, resolve_precision
from tests.support.ragged import new_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@dataclass
class OnCuda:
    """As much of a model as a choice on CUDA looks at."""

    device: torch.device = CUDA


@pytest.mark.parametrize(
    ("bf16", "fp32", "chosen"), [(1.0, 2.0, "bf16"), (2.0, 1.0, "fp32"), (1.0, 1.0, "fp32")]
)
def test_auto_takes_what_is_faster_on_this_cpu_and_says_so(bf16, fp32, chosen, monkeypatch) -> None:
    monkeypatch.setattr(precision, "layer_seconds", lambda model, lengths: (bf16, fp32))
    choice, reason = choose_precision("auto", new_model())
    assert choice == chosen
    assert reason.startswith(f"precision: {chosen}; a layer, forward and backward, takes ")
    assert f"{1000 * bf16:.3g} ms in bf16 and {1000 * fp32:.3g} ms in fp32" in reason


@pytest.mark.parametrize("lengths", [[5], [40, 3, 20], [700] * 9])
def test_the_trial_runs_the_runs_own_layer_and_leaves_the_model_alone(lengths) -> None:
    model = new_model()
    before = copy.deepcopy(model.state_dict())
    assert all(0 < seconds < 5 for seconds in precision.layer_seconds(model, lengths))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_trial_of_a_large_layer_reads_fewer_tokens(monkeypatch) -> None:
    seen = []
    attention = precision.packed_attention

    def note(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> object:
        seen.append(sum(documents.lengths))
        return attention(q, k, v, documents)

    monkeypatch.setattr(precision, "packed_attention", note)
    monkeypatch.setattr(precision, "TRIAL_FLOPS", 1)
    precision.layer_seconds(new_model(), [50] * 20)
    assert set(seen) == {precision.CPU_MULTIPLE}


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_cuda_is_bf16_only_where_the_hardware_has_it(
    supported, chosen, monkeypatch
) -> None:
    asked = []

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert resolve_precision("auto", OnCuda()) == chosen
    assert asked == [False]  # emulated bf16 is slower than fp16


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("chosen", DTYPES)
def test_an_explicit_choice_stands_and_nothing_is_probed(chosen, device, monkeypatch) -> None:
    monkeypatch.delattr(precision, "layer_seconds")
    monkeypatch.delattr(torch.cuda, "is_bf16_supported")
    assert choose_precision(chosen, OnCuda(device)) == (chosen, "")


@pytest.mark.parametrize(("chosen", "dtype"), DTYPES.items())
def test_only_products_run_in_the_precision(chosen, dtype) -> None:
    x = torch.ones(2, 2)
    with autocast(chosen, CPU):
        assert (x @ x).dtype == dtype
        assert (x + x).dtype == torch.float32
    assert (x @ x).dtype == torch.float32
