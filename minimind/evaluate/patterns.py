"""Search for rows' regular expressions in a process of its own, ended where one takes too long.

A pattern may take longer than anyone waits, as (a+)+b does, and `re` can't be told to stop.
"""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
from threading import Timer

SECONDS = 5.0  # for one answer, the start of the process included
FLAGS = re.IGNORECASE | re.DOTALL
_WORK = f"""
import json, re, sys
for line in sys.stdin:
    print(int(re.search(*json.loads(line), {int(FLAGS)}) is not None), flush=True)
"""


def why_no_pattern(pattern: object) -> str | None:
    """Say why something is no regular expression; None if it is one."""
    try:
        re.compile(pattern, FLAGS)  # type: ignore[call-overload]
    except Exception as error:  # wrong, no text, numbers or groups beyond what `re` can hold
        return str(error) or type(error).__name__
    return None


def found_in(text: str, pattern: str) -> bool:
    """Whether a pattern matches somewhere in a text.

    Raises:
        TimeoutError: that took more than SECONDS.
    """
    worker = _running()
    assert worker.stdin
    assert worker.stdout
    timer = Timer(SECONDS, worker.kill)
    timer.start()
    try:
        worker.stdin.write(json.dumps([pattern, text]) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
    except OSError:  # it was ended from outside
        answer = ""
    finally:
        timer.cancel()
    if not answer:
        _stop()
        raise TimeoutError
    return answer == "1\n"


_worker: subprocess.Popen[str] | None = None


def _running() -> subprocess.Popen[str]:
    global _worker
    if _worker is None:
        command = [sys.executable, "-I", "-c", _WORK]
        pipe = subprocess.PIPE
        _worker = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
    return _worker


@atexit.register
def _stop() -> None:
    global _worker
    if _worker is not None:
        _worker.kill()
        _worker.communicate()
        _worker = None
