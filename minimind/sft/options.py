"""The options of `python -m minimind.sft`, from its command line and a --config file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from minimind.cli.options import check_least, option_names, parse_options, refuse_old_name
from minimind.data.build import DataOptions
from minimind.data.errors import DataError
from minimind.data.selection import SplitOptions
from minimind.data.strict_json import parse_object
from minimind.training.fit import RunConfig
from minimind.training.state import TrainConfig

BASE_LEARNING_RATE = 2e-4  # for the embedded base: measured, see benchmarks/RESULTS.md


@dataclass(frozen=True, kw_only=True)
class SFTOptions:
    """Fine-tune a pretrained model on a file of conversations.

    Exit codes: 0 done, or stopped with a checkpoint for --resume, 1 the run failed, 2 a wrong
    option, 3 data that can't be used, 130 interrupted.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """JSONL, gzipped JSONL or JSON array files of conversations; - is standard input."""
    model: str | None = None
    """A Hugging Face folder, a hub name or a .pth to start from; default: the small embedded
    base."""
    tokenizer: str | None = None
    """The folder of a .pth's tokenizer; default: the folder that the .pth is in."""
    out: Path | None = None
    """The run's folder; default: a new runs/NAME-N."""
    epochs: int = 10
    """Passes over the rows."""
    max_steps: int | None = None
    """Stop the schedule after this many optimizer steps, whatever --epochs says."""
    tokens_per_step: int | None = None
    """Tokens of one optimizer step; default: 16 times the data's mean row."""
    tokens_per_batch: int | None = None
    """Tokens in memory at once, at most; changes results in their last bits only; default: 4,096
    on a CPU, on a GPU what its memory holds."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Decides the order of rows."""
    resume: bool = False
    """Resume from the newest checkpoint of --out, or start if it has none."""
    overwrite: bool = False
    """Delete the run that is in --out first; other files there stay."""
    dry_run: bool = False
    """Print what would be trained, and stop."""
    config: Path | None = None
    """A JSON file of options, by their names; the command line overrides it."""
    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RunConfig)
    split: Annotated[SplitOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=SplitOptions)
    data: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=DataOptions)
    training: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("no data file; name one, such as data.jsonl, or - for standard input")
        least = {"epochs": 1, "max_steps": 1, "tokens_per_step": 1, "tokens_per_batch": 1}
        check_least(self, least | {"seed": 0})
        if self.resume and self.overwrite:
            raise ValueError("--resume continues a run and --overwrite deletes it; use one of them")
        if self.resume and self.out is None:
            raise ValueError("--resume needs --out, the folder of the run to resume")


def parse(argv: list[str]) -> SFTOptions:
    """Options from the command line and its --config files."""
    configs = [argv[i + 1] for i, argument in enumerate(argv[:-1]) if argument == "--config"]
    configs += [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    argv = [argument for path in configs for argument in config_arguments(path)] + argv
    options = parse_options("minimind.sft", SFTOptions, argv)
    given = {argument.partition("=")[0].replace("_", "-") for argument in argv}
    if options.model is None and "--learning-rate" not in given:
        faster = replace(options.training, learning_rate=BASE_LEARNING_RATE)
        options = replace(options, training=faster)
    return options


def config_arguments(path: str) -> list[str]:
    """The options of a --config file as arguments, to be checked like them."""
    place = f"--config {path}: "
    try:
        options = parse_object(Path(path).read_bytes(), path)
    except (OSError, DataError) as error:
        fact = error.fact if isinstance(error, DataError) else error
        fact = f"{place}{fact}"
        raise ValueError(f'{fact}; name a JSON file of options, such as {{"epochs": 3}}') from None
    names = option_names(SFTOptions) - {"files", "config"}
    arguments: list[str] = []
    for name, value in options.items():
        option = name.replace("_", "-")
        refuse_old_name(name, names, place)
        if option not in names:
            raise ValueError(f"{place}no option is called {name}; see --help")
        if isinstance(value, dict):
            raise ValueError(f"{place}{name} is an object; give a plain value")
        if value in (math.inf, -math.inf):  # or as long as a huge integer is
            raise ValueError(f"{place}{name} is a huge number; give a smaller one")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            if any(isinstance(part, (dict, list)) for part in value):
                raise ValueError(f"{place}{name} has a list or an object in it; give plain values")
            arguments += [f"--{option}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{option}={value}")
    return arguments
