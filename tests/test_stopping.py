"""First signal: stop after this step; second Ctrl-C: stop now."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

import pytest

from minimind.training.stop import stop_requests


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # between two bytecodes handlers run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_to_stop_and_is_answered(number, capfd) -> None:
    with stop_requests() as requested:
        assert not requested()
        send(number)
        assert requested()
    assert capfd.readouterr().err == (
        "\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n"
    )


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_next_ctrl_c_interrupts(first) -> None:
    with stop_requests() as requested:
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert requested()


def test_whoever_asks_a_program_to_end_may_ask_twice(capfd) -> None:
    with stop_requests() as requested:
        for _ in range(3):
            send(signal.SIGTERM)
        assert requested()
    assert capfd.readouterr().err.count("stopping") == 1


def test_afterwards_signals_do_what_they_did_before() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with stop_requests():
        pass
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_a_hang_up_that_is_ignored_as_under_nohup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as requested:
            send(signal.SIGHUP)
            assert not requested()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_doesnt_break_the_stop(monkeypatch) -> None:
    def gone(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with stop_requests() as requested:
        monkeypatch.setattr(os, "write", gone)
        send(signal.SIGHUP)
        assert requested()


def test_time_is_counted_from_the_beginning_on(monkeypatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stop = stop_requests(max_minutes=2)
    clock[0] += 500
    with stop as requested:
        clock[0] += 119
        assert not requested()
        clock[0] += 2
        assert requested()


def test_a_thread_that_gets_no_signals_can_be_stopped_by_time_all_the_same() -> None:
    found = []

    def work() -> None:
        with stop_requests(max_minutes=0) as requested:
            found.append(requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
