"""Score a tuned model on prompts that are not in the sample: right, and ended by itself.

python -m benchmarks.held_out runs/conversations-1
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import minimind
from benchmarks.environment import environment
from minimind.data.masking import encode_prompt
from minimind.sampler import SampleConfig, generate_batch

PROMPTS = Path(__file__).parent / "data" / "held_out.jsonl"
GREEDY = SampleConfig(temperature=0, max_new_tokens=100)
FLAGS = re.IGNORECASE | re.DOTALL
ROWS = 32  # prompts answered side by side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="folder of the tuned model")
    model, tokenizer = minimind.load(parser.parse_args().run)
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    asked = [encode_prompt(row["messages"], tokenizer) for row in rows]
    answers: list[list[int]] = []
    for start in range(0, len(asked), ROWS):
        answers += generate_batch(model, asked[start : start + ROWS], GREEDY, tokenizer.stop_ids)
    right: Counter[str] = Counter()
    prompts = Counter(f"{row['language']} {row['kind']}" for row in rows)
    ended = sum(ids[-1] in tokenizer.stop_ids for ids in answers)
    for row, ids in zip(rows, answers, strict=True):
        text = tokenizer.decode(ids, skip_control=True)
        right[f"{row['language']} {row['kind']}"] += bool(re.search(row["pattern"], text, FLAGS))
    for group, count in prompts.items():
        print(f"{group}: {right[group]} of {count} right")
    print(f"{ended} of {len(rows)} end by themselves")
    print(json.dumps(environment() | {"right": right, "prompts": prompts, "ended": ended}))


if __name__ == "__main__":
    main()
