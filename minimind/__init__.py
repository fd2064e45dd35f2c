"""Turn a pretrained small language model and a JSONL file of conversations into a chat model."""

from minimind.version import __version__
