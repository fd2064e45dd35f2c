"""A pseudo-terminal with our Python in it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Terminal:
    """Runs Python with arguments; its environment is ours, `LC_ALL=C` and what is given.

    wait_for("> ")   type("안녕?\\r")   wait_for("\\n")
    """

    def __init__(self, *arguments: str, **environment: str) -> None:
        ours = {**os.environ, "LC_ALL": "C", "INPUTRC": os.devnull, "OMP_NUM_THREADS": "1"}
        self._end, other_end = pty.openpty()
        self._unread = b""
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *arguments],
            env={**ours, **environment},
            cwd=ROOT,
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
        )
        os.close(other_end)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)

    def type(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C once the process waits for input.

        A signal between readline's last look and its wait is seen with the next key only.
        """
        waiting = 0
        while waiting < 5:
            time.sleep(0.05)
            state = Path(f"/proc/{self.process.pid}/stat")
            asleep = not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "S"
            waiting = waiting + 1 if asleep else 0
        self.process.send_signal(signal.SIGINT)

    def wait_for(self, text: str) -> str:
        """What is shown up to `text` and with it."""
        while text.encode() not in self._unread:
            readable, _, _ = select.select([self._end], [], [], 60)
            assert readable, f"{text!r} did not come: {self._unread!r}"
            try:
                self._unread += os.read(self._end, 65536)
            except OSError:  # it ended
                raise AssertionError(f"{text!r} did not come: {self._unread!r}") from None
        shown, _, self._unread = self._unread.partition(text.encode())
        return shown.decode() + text
