"""What all tests share: the embedded tokenizer; and none reaches the network or the home folder."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

# Before anything imports huggingface_hub, which reads them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests start processes
if "PYTEST_XDIST_WORKER" in os.environ:  # workers that all use all cores wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

import minimind
from minimind.tokenizer import Tokenizer

# A slow machine isn't a fault of the code.
settings.register_profile(
    "minimind", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
NUMBERS = count()
settings.load_profile("minimind")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The embedded one."""
    return Tokenizer.load(Path(minimind.__file__).parent / "base")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets are cached in the test's own folder, which most tests never make."""
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(NUMBERS))
    monkeypatch.setenv("MINIMIND_CACHE", str(folder))
