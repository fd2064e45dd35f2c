"""Text to token ids and back, and the control tokens."""

from minimind.tokenizer.tokenizer import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
