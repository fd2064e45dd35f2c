"""Turn a pretrained small language model and a JSONL file of conversations into a chat model.

model, tokenizer = minimind.load()
chats = minimind.read_conversations("chats.jsonl")
examples = [minimind.encode_conversation(chat, tokenizer) for chat in chats]
steps = minimind.make_steps(examples, tokens_per_step=2048, epochs=10)
for result in minimind.train(model, steps):
    print(result.step, float(result.loss))
print(minimind.reply(model, tokenizer, [{"role": "user", "content": "Hello!"}]))
"""

import signal
import sys

from minimind.terminal import end_quietly

if sys.argv[:1] == ["-m"] and any(word.startswith("minimind.") for word in sys.orig_argv):
    signal.signal(signal.SIGINT, end_quietly)  # until the command's own imports are done

from minimind.data.conversation import Call, Conversation, Message, parse_conversation
from minimind.data.dataset import Example
from minimind.data.errors import DataError
from minimind.data.masking import encode_conversation
from minimind.data.packing import Batch, Step
from minimind.data.plan import Steps, make_steps
from minimind.data.reader import read_conversations
from minimind.model.config import ModelConfig
from minimind.model.pretrained import load, save
from minimind.model.transformer import Transformer
from minimind.sampler import Ending, SampleConfig, generate, reply, stream_reply
from minimind.tokenizer import Tokenizer
from minimind.training.loop import StepResult, train
from minimind.training.state import TrainConfig, TrainState
from minimind.version import __version__

__all__ = [
    "Batch",
    "Call",
    "Conversation",
    "DataError",
    "Ending",
    "Example",
    "Message",
    "ModelConfig",
    "SampleConfig",
    "Step",
    "StepResult",
    "Steps",
    "Tokenizer",
    "TrainConfig",
    "TrainState",
    "Transformer",
    "__version__",
    "encode_conversation",
    "generate",
    "load",
    "make_steps",
    "parse_conversation",
    "read_conversations",
    "reply",
    "save",
    "stream_reply",
    "train",
]
