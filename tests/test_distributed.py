"""Over several processes a step is the same step, and a run the same run."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from minimind.cli.command import EXIT_FAILED, run_command
from minimind.data.packing import Step
from minimind.data.plan import Batches, Steps, make_steps
from minimind.model.pretrained import BASE, load
from minimind.model.transformer import Transformer
from minimind.pretrain import __main__ as pretrain
from minimind.sft import __main__ as sft
from minimind.tokenizer import Tokenizer
from minimind.training import distributed
from minimind.training import fit as run_module
from minimind.training import step as step_module
from minimind.training.checkpoint import TENSORS, save_checkpoint
from minimind.training.fit import validation_loss
from minimind.training.loop import train
from minimind.training.state import TrainConfig, TrainState
from tests.support.ragged import new_model, ragged_rows
from tests.support.tiny import write_base
from tests.test_checkpoint import load_newest
from tests.test_docs import commands
from tests.test_loop import cut_evenly, relative_difference, step_gradients
from tests.test_resuming import Fitting

ROOT = Path(__file__).parents[1]
FP32 = TrainConfig(precision="fp32", learning_rate=1e-3)


@dataclass(frozen=True)
class Case:
    """A run of the ragged decoder."""

    steps: int
    tied: bool = True
    rows: int = 16
    whole: bool = False  # all rows in one step
    size: int | None = None
    config: TrainConfig = FP32

    def plan(self) -> Steps:
        """Two or more micro-batches a step; more steps than are done."""
        dataset = ragged_rows(self.rows, weighted=True)
        if self.whole:
            return make_steps(dataset, tokens_per_step=10**6, tokens_per_batch=60)
        return make_steps(dataset, tokens_per_step=70, tokens_per_batch=45, epochs=20)


@dataclass(frozen=True)
class Found:
    """What the first process saw of a case."""

    gradients: dict[str, Tensor]  # of the first step, before they are clipped
    losses: list[float]
    norms: list[float]
    validation: float


HALF = [replace(FP32, precision=precision) for precision in ("bf16", "fp16")]
AUTO = replace(FP32, precision="auto")
FRUGAL = replace(FP32, activation_checkpointing=True)
CASES = {
    2: [
        Case(50),
        Case(50, tied=False),
        Case(1, whole=True),
        Case(1, rows=1, whole=True),
        Case(1, rows=1, whole=True, tied=False),
        Case(6, size=1),
        Case(6, config=FRUGAL),
        *(Case(6, config=config) for config in HALF),
        Case(6, config=replace(HALF[0], activation_checkpointing=True), size=1),
    ],
    4: [
        Case(50),
        Case(50, tied=False, size=2),
        Case(1, whole=True),
        Case(1, rows=3, whole=True),
        Case(1, rows=3, whole=True, tied=False),
    ],
}


def run_case(case: Case) -> Found:
    """In each process; alone too."""
    model = new_model(tie_word_embeddings=case.tied)
    distributed.shard(model, case.config.precision, case.size)
    state = TrainState(model, case.config)
    gradients: list[dict[str, Tensor]] = []
    clip = step_module.clip_gradients

    def note_and_clip(parameters, max_norm):
        if not gradients:
            grads = {name: p.grad.clone() for name, p in model.named_parameters()}
            gradients.append({name: distributed.full_tensor(grad) for name, grad in grads.items()})
        return clip(parameters, max_norm)

    place = distributed.rank(), distributed.world_size()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(step_module, "clip_gradients", note_and_clip)
        run = train(model, case.plan().of_rank(*place), case.config, state=state)
        results = list(islice(run, case.steps))
    losses, norms = ([float(getattr(r, name)) for r in results] for name in ("loss", "grad_norm"))
    validation = Batches(ragged_rows(5, seed=1), 60).of_rank(*place)
    return Found(gradients[0], losses, norms, validation_loss(model, validation, state.precision))


def start(ranks: int, folder: Path, work: Callable[..., object], *arguments: object) -> list[Any]:
    """What each of several processes returns; None from one that is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_distributed", "torch.distributed.fsdp"])
    answers = context.Queue()
    meeting = folder / f"meeting-{time.monotonic_ns()}"
    crowd = [
        context.Process(target=_enter, args=(answers, meeting, rank, ranks, work, arguments))
        for rank in range(ranks)
    ]
    for process in crowd:
        process.start()
    found: dict[int, Any] = {}
    while len(found) < ranks:  # the pipe must be read before they can end
        with suppress(queue.Empty):
            rank, answer = answers.get(timeout=1)
            found[rank] = pickle.loads(answer)
        codes = [process.exitcode for process in crowd]
        assert not {*codes} - {None, 0, -signal.SIGKILL}
        found |= dict.fromkeys(rank for rank in range(ranks) if codes[rank] == -signal.SIGKILL)
    for process in crowd:
        process.join(60)
    return [found[rank] for rank in range(ranks)]


def _enter(answers, meeting, rank, ranks, work, arguments) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=ranks)
    answers.put((rank, pickle.dumps(work(*arguments))))  # tensors too: no memory is shared
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def run_cases(ranks: int) -> list[Found]:
    return [run_case(case) for case in CASES[ranks]]


@cache
def alone(case: Case) -> Found:
    """A case in one process."""
    return run_case(replace(case, size=None))


@pytest.fixture(
    scope="module",
    params=[2, pytest.param(4, marks=pytest.mark.slow)],
    ids="{} ranks".format,
)
def together(request, tmp_path_factory) -> dict[Case, Found]:
    """Each case over several processes."""
    folder = tmp_path_factory.mktemp("cases")
    first = start(request.param, folder, run_cases, request.param)[0]
    return dict(zip(CASES[request.param], first, strict=True))


# Steps


def test_gradients_do_not_depend_on_the_micro_batches_nor_on_the_ranks(together) -> None:
    """T3: 16 ragged rows as 16x1, 4x4 and 1x16 in one process, and over ranks."""
    (found,) = (f for case, f in together.items() if case.whole and case.rows == 16)
    for parts in (1, 4, 16):
        whole = step_gradients(cut_evenly(ragged_rows(16, weighted=True), parts))
        assert found.gradients.keys() == whole.keys()
        for name, gradient in found.gradients.items():
            assert relative_difference(gradient, whole[name]) <= 1e-6, (parts, name)


def test_losses_norms_and_validation_are_a_single_processes(together) -> None:
    for case, found in together.items():
        single, close = alone(case), 1e-5 if case.config.precision == "fp32" else 3e-2
        assert len(found.losses) == case.steps
        assert found.losses == pytest.approx(single.losses, rel=close), case
        assert found.norms == pytest.approx(single.norms, rel=close), case
        assert found.validation == pytest.approx(single.validation, rel=close), case
        for name, gradient in found.gradients.items():
            apart = relative_difference(gradient, single.gradients[name])
            assert apart <= (1e-6 if close == 1e-5 else 3e-2), (case, name)


def test_every_rank_has_equally_many_batches_and_together_they_are_the_step() -> None:
    steps = make_steps(ragged_rows(40), tokens_per_step=90, tokens_per_batch=50)
    for ranks in (1, 2, 3, 7):
        shares = [steps.of_rank(rank, ranks) for rank in range(ranks)]
        for index, plain in enumerate(steps):
            own = [share[index] for share in shares]
            assert len({len(batches) for batches in own}) == 1
            rows = [row for batches in own for batch in batches for row in batch.rows]
            assert sorted(rows) == sorted(steps.rows_of(index))
            assert all(len(batch) <= 50 for batches in own for batch in batches)
            supervised = sum(batch.num_supervised for batches in own for batch in batches)
            for batches in own:
                whole = Step.of(batches)
                assert sorted(whole.rows) == sorted(rows)
                assert (whole.tokens, whole.supervised) == (Step.of(plain).tokens, supervised)


def test_ranks_get_about_equally_many_tokens() -> None:
    steps = make_steps(ragged_rows(400), tokens_per_step=4_000, tokens_per_batch=500)
    for ranks in (2, 4):
        for index in range(len(steps)):
            own = [steps.of_rank(rank, ranks)[index] for rank in range(ranks)]
            tokens = [sum(len(batch) for batch in batches) for batches in own]
            assert max(tokens) <= 1.05 * min(tokens)


def test_validation_batches_are_shared_out_once_each() -> None:
    batches = Batches(ragged_rows(10), 50)
    for ranks in (2, 4):
        shares = [list(batches.of_rank(rank, ranks)) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        rows = [row for share in shares for batch in share for row in batch.rows]
        assert sorted(rows) == list(range(10))


# Agreeing


def disagree(folder: Path) -> dict[str, object]:
    """In one rank alone the loss of the second step is no number, or someone wants to stop."""
    rank = distributed.rank()
    model = new_model()
    distributed.shard(model, "fp32")
    steps = make_steps(ragged_rows(16), tokens_per_step=100, epochs=2).of_rank(rank, 2)
    batch_loss, losses, weights = step_module.batch_loss, [], []
    with pytest.MonkeyPatch.context() as monkeypatch:

        def bad(*arguments: Any) -> Tensor:
            loss = batch_loss(*arguments)
            return loss * float("nan") if len(losses) == 1 and rank == 1 else loss

        monkeypatch.setattr(step_module, "batch_loss", bad)
        for result in islice(train(model, steps, FP32), 3):
            losses.append(float(result.loss))
            weights.append(distributed.full_tensor(model.model.norm.weight.detach()).clone())
    order = folder / "order"
    with distributed.main_process_first():
        with order.open("a") as file:
            file.write(str(rank))
        time.sleep(0.2 * (1 - rank))
    return {
        "losses": losses,
        "moved": [not torch.equal(weights[i], weights[i + 1]) for i in range(2)],
        "anyone": [distributed.any_rank(rank == 1), distributed.any_rank(False)],
        "from first": distributed.broadcast(f"rank {rank}"),
        "first": distributed.is_main_process(),
        "order": order.read_text(),
        "copy": str(next(distributed.gather_model(model).parameters()).device),
        "refused": refusals(folder),
        "lost": [
            distributed.is_loss_of_another(RuntimeError(text))
            for text in ("Connection closed by peer [127.0.0.1]", "a failing kernel")
        ],
    }


def refusals(folder: Path) -> list[str]:
    with pytest.raises(ValueError, match="--shard is 3") as shard:
        distributed.shard(new_model(), "fp32", 3)
    options = sft.parse(["-", "--out", str(folder / "out"), "--device", "cpu"])
    with pytest.raises(ValueError, match="standard input") as data:
        sft.run(options, [])
    timed = pretrain.PretrainOptions(files=("a.txt",), out=folder / "out", minutes=1.0)
    with pytest.raises(ValueError, match="--minutes is measured by one process") as plan:
        pretrain.prepare(timed, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="a failing kernel"):
        run_command([], list, partial(fail_with, "a failing kernel"))
    gone = io.StringIO()
    with redirect_stderr(gone):
        code = run_command([], list, partial(fail_with, "Connection closed by peer"))
    assert code == EXIT_FAILED
    said = gone.getvalue().strip().replace(f" in process {distributed.rank()}", "")
    return [*(str(error.value) for error in (shard, data, plan)), said]


def fail_with(error: str, options: object) -> None:
    raise RuntimeError(error)


def test_ranks_never_disagree(tmp_path) -> None:
    first, second = start(2, tmp_path, disagree, tmp_path)
    assert [np.isnan(loss) for loss in first["losses"]] == [False, True, False]
    assert np.array_equal(first.pop("losses"), second.pop("losses"), equal_nan=True)
    assert (first.pop("first"), second.pop("first")) == (True, False)
    assert (first.pop("copy"), second.pop("copy")) == ("cpu", "meta")
    assert first.pop("order").startswith("0")
    assert second.pop("order") == "01"
    assert first == second
    assert first == {
        "moved": [False, True],  # the bad step changed nothing, anywhere; the next one trains
        "anyone": [True, False],
        "from first": "rank 0",
        "refused": [
            "--shard is 3 and there are 2 processes; use a number that divides them",
            "standard input can't be read by several processes; name a file",
            "--minutes is measured by one process; give several --tokens or --epochs",
            "error: another process of this run ended; torchrun's output names it (Connection "
            "closed by peer); resume the run from its last checkpoint",
        ],
        "lost": [True, False],
    }


def lose_a_rank() -> bool:
    """Rank 1 is killed after a step; whether the other one says why it ends."""
    model = new_model()
    distributed.shard(model, "fp32")
    steps = make_steps(ragged_rows(16), tokens_per_step=100).of_rank(distributed.rank(), 2)
    run = train(model, steps, FP32)
    next(run)
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as error:
        list(run)
    found = distributed.is_loss_of_another(error.value)
    dist.destroy_process_group()
    return found


def test_a_rank_that_is_killed_ends_the_others_with_the_reason(tmp_path) -> None:
    assert start(2, tmp_path, lose_a_rank) == [True, None]


def test_alone_there_is_nothing_to_agree_on(tmp_path) -> None:
    model = new_model()
    distributed.init_distributed(torch.device("cpu"))
    distributed.shard(model, "bf16")
    assert distributed.gather_model(model) is model
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.launcher() == ["python"]
    assert distributed.local_device(torch.device("cuda")) == torch.device("cuda")
    assert not distributed.is_loss_of_another(RuntimeError("Connection closed by peer"))
    assert not dist.is_initialized()


def test_under_torchrun_each_process_knows_its_gpu_and_what_started_it(monkeypatch) -> None:
    started = {"TORCHELASTIC_RUN_ID": "x", "RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert distributed.local_device(torch.device("cuda")) == torch.device("cuda", 1)
    assert distributed.local_device(torch.device("cpu")) == torch.device("cpu")
    assert distributed.launcher() == ["torchrun", "--nproc-per-node", "8"]
    assert not distributed.is_main_process()


# Checkpoints


LONG = Case(steps=0)


def go_on(source: Path, target: Path, stop: int) -> dict[str, Any]:
    """From a checkpoint to a step, where another one is left."""
    model = new_model()
    distributed.shard(model, "fp32")
    state = TrainState(model, FP32)
    extra, _ = load_newest(source, model, state)
    again = save_checkpoint(target / "again", model, state, extra or {})
    steps = LONG.plan().of_rank(distributed.rank(), distributed.world_size())
    run = train(model, steps, FP32, state=state)
    results = [next(run) for _ in range(stop - state.step)]
    save_checkpoint(target, model, state, {"ranks": distributed.world_size()})
    return {
        "extra": extra,
        "again": again,
        "losses": [float(result.loss) for result in results],
        "rows": [row for result in results for row in result.rows],
    }


def test_a_run_goes_on_with_any_number_of_ranks_and_each_row_trains_once_an_epoch(tmp_path) -> None:
    epoch = LONG.plan().steps_per_epoch
    assert epoch > 3
    stops, parts, extras = [2, 3, epoch + 1, 2 * epoch], [], []
    source = tmp_path / "nothing"
    for stop, ranks in zip(stops, (1, 2, 4, 1), strict=True):
        target = tmp_path / str(stop)
        if ranks == 1:
            part = go_on(source, target, stop)
        else:
            part = start(ranks, tmp_path, go_on, source, target, stop)[0]
        if parts:  # what was loaded is what was saved, moments and all, to the last bit
            saved = load_file(max(source.glob("step-*")) / TENSORS)
            loaded = load_file(part["again"] / TENSORS)
            assert saved.keys() == loaded.keys()
            assert all(torch.equal(saved[name], loaded[name]) for name in saved)
            assert sum(name.startswith("optimizer/") for name in saved) > 20
        parts.append(part)
        extras.append(part["extra"])
        source = target
    assert extras == [None, {"ranks": 1}, {"ranks": 2}, {"ranks": 4}]
    rows = [row for part in parts for row in part["rows"]]
    half = len(rows) // 2
    assert sorted(rows[:half]) == sorted(rows[half:]) == list(range(16))
    whole = go_on(tmp_path / "nothing", tmp_path / "whole", 2 * epoch)
    losses = [loss for part in parts for loss in part["losses"]]
    assert losses == pytest.approx(whole["losses"], rel=1e-5)


def sum_of_norm(model: Transformer, precision: str) -> dict[str, float]:
    return {"validation_loss": float(model.model.norm.weight.detach().sum())}


def fit_in_turns(out: Path) -> tuple[list[tuple[bool, int]], list[str]]:
    """Stop by one rank's clock alone, then go on; outcomes, and what was said."""
    fitting = Fitting(out, Tokenizer.load(BASE), config=AUTO)
    with pytest.MonkeyPatch.context() as monkeypatch:  # as if each had measured something else
        measured = ("fp32", "fp16")[distributed.rank()]
        monkeypatch.setattr(run_module, "choose_precision", lambda *_: (measured, ""))
        first = fitting(max_minutes=0 if distributed.rank() == 1 else None)
        last = fitting()
        measured = replace(fitting, out=out.with_name("measured"), measure=sum_of_norm, epochs=1)()
    assert last.precision == "fp32"
    assert measured.first_loss == 32 != measured.last_loss  # of a model in one piece
    return [(outcome.finished, outcome.steps) for outcome in (first, last)], fitting.said


def test_one_rank_that_wants_to_stop_stops_all_and_what_is_not_exact_is_said(
    tmp_path, monkeypatch, tokenizer
) -> None:
    out = tmp_path / "run"
    alone = Fitting(out, tokenizer, config=AUTO)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "choose_precision", lambda *_: ("bf16", ""))
        assert alone(max_minutes=0).precision == "bf16"
    first, second = start(2, tmp_path, fit_in_turns, out)
    assert first == second
    steps = len(alone.steps)
    assert first[0] == [(False, 2), (True, steps)]
    said = [sentence for sentence in first[1] if "threads" not in sentence]
    assert said == [
        f"resuming from step 1 of {steps}",
        "not bit-exact: processes was 1 and is 2",
        "not bit-exact: precision was bf16 and is fp32",
        f"resuming from step 2 of {steps}",
    ]


# Whole runs


@dataclass(frozen=True)
class Torchrun:
    """Starts `minimind.sft` in two processes."""

    folder: Path
    base: Path

    def start(self, *words: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """With its own words for the command that follows torchrun's."""
        program = [sys.executable, "-m", "torch.distributed.run", *launcher]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MINIMIND_CACHE": str(self.folder / "cache"),
        }
        return subprocess.Popen(
            [*program, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=environment,
        )


TWO = ("--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory) -> Torchrun:
    folder = tmp_path_factory.mktemp("torchrun")
    lines = (ROOT / "tests/data/conversations.jsonl").read_text(encoding="utf-8").splitlines(True)
    (folder / "data.jsonl").write_text("".join(lines[:60]), encoding="utf-8")
    return Torchrun(folder, write_base(folder / "base"))


def test_the_command_of_the_page_trains_in_every_process_and_one_of_them_speaks(torchrun) -> None:
    (words,) = (words for words in commands(ROOT / "docs/gpus.md") if words[0] == "torchrun")
    short = ["--max-steps", "3", "--tokens-per-step", "300", "--tokens-per-batch", "128"]
    short += ["--max-length", "128", "--model", torchrun.base, "--precision", "fp32"]
    assert words[1:4] == ["--standalone", "--nproc-per-node", "8"]
    words[3] = "2"
    process = torchrun.start(*words[1:], *short, "--device", "cpu")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    out = torchrun.folder / words[words.index("--out") + 1]
    for line in ("rows: 60 read", "training: ", "steps: 3 of", "chat with it:"):
        assert said.count(line) == 1, said
    assert len(list((torchrun.folder / "cache").glob("*/report.json"))) == 1
    model, _ = load(out)  # a Hugging Face folder
    (single,) = ([json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()],)
    assert [line["step"] for line in single if "loss" in line] == [1, 2, 3]
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["command"][:3] == ["torchrun", "--nproc-per-node", "2"]
    assert model.config.hidden_size == 32


def lines_of(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for_lines(process: subprocess.Popen[str], out: Path, lines: int) -> None:
    end = time.monotonic() + 60
    while lines_of(out) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def workers(process: subprocess.Popen[str]) -> Iterator[int]:
    """Process ids, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for rank in range(2):
        for child in children:
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                yield int(child)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_killed_rank_ends_all_and_torchrun_goes_on_to_the_same_weights(torchrun) -> None:
    """Rank 1 is killed, torchrun starts again; then all are asked to stop, and called once more."""
    options = ["-m", "minimind.sft", "data.jsonl", "--model", torchrun.base, "--epochs", "9"]
    options += ["--tokens-per-step", "400", "--tokens-per-batch", "128", "--max-length", "128"]
    options += ["--precision", "fp32", "--save-every", "3", "--val-fraction", "0.1", "--resume"]
    whole, out = torchrun.folder / "whole", torchrun.folder / "killed"
    undisturbed = torchrun.start(*options, "--out", whole, launcher=TWO)
    said, _ = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, said

    process = torchrun.start(*options, "--out", out, launcher=(*TWO, "--max-restarts", "1"))
    wait_for_lines(process, out, 8)
    before = lines_of(out)
    os.kill(list(workers(process))[1], signal.SIGKILL)
    killed = time.monotonic()
    wait_for_lines(process, out, before + 8)
    assert time.monotonic() - killed < 60
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert "failed (exitcode: -9) local_rank: 1" in said
    assert said.count("resuming from step ") == 1
    assert said.count("stopped after step ") == 1, said

    process = torchrun.start(*options, "--out", out, launcher=TWO)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    last = max((whole / "checkpoints").glob("step-*")).relative_to(whole) / TENSORS
    for name in (Path("model.safetensors"), Path("last/model.safetensors"), last):
        ours, theirs = load_file(out / name), load_file(whole / name)
        assert ours.keys() == theirs.keys()
        # Nothing in training is drawn at random; only how often processes met is.
        drawn = {key for key in ours if key.startswith("random/")}
        assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() - drawn)
