"""Answer ten prompts that are not in the sample, as README shows them.

python -m benchmarks.ten_prompts runs/conversations-1
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import minimind

PROMPTS = Path(__file__).parent / "data" / "ten_prompts.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="folder of the tuned model")
    model, tokenizer = minimind.load(parser.parse_args().run)
    stopped = 0
    print("| prompt | answer |\n|--|--|")
    for messages in json.loads(PROMPTS.read_text(encoding="utf-8")):
        asked = minimind.data.masking.encode_prompt(messages, tokenizer)
        ids = list(
            minimind.generate(
                model, asked, temperature=0, max_new_tokens=256, stop_ids=tokenizer.stop_ids
            )
        )
        stopped += ids[-1] in tokenizer.stop_ids
        shown = "<br>".join(message["content"] for message in messages)
        print(f"| {shown} | {tokenizer.decode(ids, skip_control=True)} |")
    print(f"\n{stopped} of 10 end by themselves.")


if __name__ == "__main__":
    main()
