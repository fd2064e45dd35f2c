"""How far SmolLM2-135M's logits are from those of transformers, on real text.

python -m benchmarks.parity                  the two texts of tests/test_smollm2.py
python -m benchmarks.parity FILE FILE ...    the first 1,024 tokens of each text file
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import minimind
from benchmarks.environment import environment
from tests.support.smollm2 import directory
from tests.test_smollm2 import ENGLISH, KOREAN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="text files")
    files = parser.parse_args().files
    texts = {"English": ENGLISH, "Korean": KOREAN}
    if files:
        texts = {path.name: path.read_text(encoding="utf-8")[:20_000] for path in files}
    ours, tokenizer = minimind.load(directory())
    theirs = AutoModelForCausalLM.from_pretrained(directory(), dtype=torch.float32).eval()
    print("| text | tokens | their eager kernel | their sdpa kernel |\n|--|--|--|--|")
    for name, text in texts.items():
        ids = torch.tensor([tokenizer.encode(text)[:1024]])
        far = {}
        with torch.no_grad():
            logits = ours(ids)
            for kernel in ("eager", "sdpa"):
                theirs.set_attn_implementation(kernel)
                far[kernel] = float((logits - theirs(ids).logits).abs().max())
        print(f"| {name} | {ids.size(1)} | {far['eager']:.1e} | {far['sdpa']:.1e} |")
    print(json.dumps(environment()))


if __name__ == "__main__":
    main()
