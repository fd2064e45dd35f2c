"""Tokens per second on this machine, in under two minutes: training, decoding, tokenizing.

    python -m benchmarks

Each benchmark has more to say on its own: `python -m benchmarks.train_throughput --help`.
"""

from __future__ import annotations

import subprocess
import sys

PARTS = {
    "train_throughput": ["--shape", "26M", "--steps", "1"],
    "decode_throughput": ["--new-tokens", "32"],
    "tokenize_throughput": ["--rows", "2000"],
}


def main() -> int:
    for name, options in PARTS.items():
        print(f"## {name} {' '.join(options)}\n", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        done = subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(f"error: {name} failed; run python -m benchmarks.{name}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
