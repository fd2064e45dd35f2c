"""Find text that spells a control token of some model."""

import re

LOOK_ALIKE = re.compile(
    r"<\|[\w ]{1,40}\|>|<｜[\w ▁]{1,40}｜>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<(?:unk|pad|bos|eos)>|###(?:bos|eos|pad|unk)_token###"
)
