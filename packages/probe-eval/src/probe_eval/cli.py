"""The command line: frozen configurations in, one line per error out.

Imports torch only after the arguments have been understood.
"""

import contextlib
import dataclasses
import difflib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from probe_eval.config import (
    EmbedConfig,
    GenerateConfig,
    ReconstructConfig,
    ShowConfig,
    ValidateConfig,
)
from probe_eval.distributed import is_main_process
from probe_eval.pretrain.config import (
    PretrainTokenizerConfig,
    PretrainTwinsConfig,
    PretrainWaltConfig,
)
from probe_eval.recipes import RECIPES, DemoConfig

PROG = "probe-eval"
SUMMARY = """Probes frozen image and video models with light readouts.

commands:
  demo         pretrain tiny twins, probe them, draw them, write one page (start here)
  embed        write the states of prompts from a text encoder to a file
  generate     make images or videos from a trained denoiser
  pretrain     train a tokenizer; a denoiser on it; or a tokenizer, I-WALT and V-WALT
  reconstruct  put a video beside what a tokenizer makes of it, and measure it
  run          train one readout on frozen features and write its record
  show         draw frames and the features of both twins for video files
  validate     say how much of a data set is there, and what of it cannot be read

options:
  -h, --help   this text; after a command, that command's options with defaults and units
  --version    the version
  -v           say more: what every package logs
  --debug      on an error, the whole traceback

`accelerate launch -m probe_eval COMMAND ...` runs a command on many processes.
"""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Show(ShowConfig):
    """Frames, first principal component of both twins, and where they differ."""

    videos: tyro.conf.Positional[tuple[str, ...]]
    """Video files: mp4, mov, webm or mkv."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruct(ReconstructConfig):
    """A video beside what a tokenizer makes of it, and how close the two are."""

    video: tyro.conf.Positional[str]
    """Video file: mp4, mov, webm or mkv."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Embed(EmbedConfig):
    """States of prompts, written to a file that `pretrain walt` and `generate` read.

    Needs the extra `probe-eval[text]`, which brings transformers.
    """

    prompts: tyro.conf.Positional[tuple[str, ...]]
    """Prompts, each in quotes."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Validate(ValidateConfig):
    """How much of a data set is there: found, expected, missing and unreadable samples.

    Exit status 1 where a split has too few of them.
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Name in the registry of probe-datasets."""
    root: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")] = ""
    """Folder of the data set; left out for data sets that need none."""
    json: bool = False
    """Write the report as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainTokenizer(PretrainTokenizerConfig):
    """A tokenizer: any size, any part of MAGVIT-v2's objective."""

    dry_run: bool = False
    """Say what would be trained, on what and where it would go; train nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainTwins(PretrainTwinsConfig):
    """A tokenizer and then both denoisers, I-WALT and V-WALT, on the same clips."""

    dry_run: bool = False
    """Say what would be trained, on what and where it would go; train nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainWalt(PretrainWaltConfig):
    """One denoiser, V-WALT or I-WALT of any size, on the latents of a trained tokenizer.

    Needs a tokenizer (`probe-eval pretrain tokenizer`). Leaves walt/ for `probe-eval generate`.
    """

    dry_run: bool = False
    """Say what would be trained, on what and where it would go; train nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0; 1 where `validate` finds too little; or 2 after bad input, which is told
        in one line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug, verbose = "--debug" in words, "-v" in words
    words = [word for word in words if word not in ("--debug", "-v")]
    start_logging(verbose)
    # Read when torch is imported. Threads of GNU OpenMP spin for long while they wait, which makes
    # a run ten times slower as soon as another program wants a core; not to spin at all makes it
    # twice as slow on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        return run(words)
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        return 0
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"{PROG}: error: {message}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"{PROG}: stopped; the same command resumes", file=sys.stderr)  # noqa: T201
        return 130


def run(words: list[str]) -> int:
    """Understands the words and runs the command.

    Raises:
        ValueError: for an unknown command or recipe, or whatever the command refuses.
    """
    if not words or words[0] in ("-h", "--help"):
        print(SUMMARY, end="")  # noqa: T201
        return 0
    if words[0] == "--version":
        from probe_eval import __version__

        print(f"{PROG} {__version__}")  # noqa: T201
        return 0
    command = known("command", words[0], COMMANDS)
    return COMMANDS[command](words[1:])


def known(kind: str, name: str, names: Any) -> str:
    """`name`, if it is one of `names`.

    Raises:
        ValueError: naming the known ones, and the nearest.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, list(names), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(names)}{hint}")


def parse(kind: Any, words: list[str], command: str, default: Any = None) -> Any:
    """A configuration from words; `--help` prints it with defaults and units and ends the program.

    Raises:
        ValueError: for an unknown option or a value of the wrong type or out of range.
    """
    given = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                args=words,
                prog=f"{PROG} {command}",
                console_outputs=is_main_process(),
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{reason(complaint.getvalue())}; see `{PROG} {command} --help`") from None


def reason(complaint: str) -> str:
    """What tyro says is wrong, without its frame, its heading and its hints.

    Its text is blocks between rules: what is wrong, then hints; the heading is part of the frame,
    or, where the terminal has no characters for a frame, a first block.
    """
    framed = "\u256d" in complaint
    text = re.sub(r"^\u256d.*$|^[\u2570].*$|\u2502", "", complaint, flags=re.MULTILINE)
    blocks = [" ".join(block.split()) for block in re.split(r"[\u2500-]{5,}", text)]
    blocks = [block for block in blocks if block]
    message = blocks[0 if framed else 1 :][:1]
    return message[0] if message else "wrong arguments"


def start_logging(verbose: bool) -> None:
    """Messages on rank 0: this program's and the tokenizer's, or with `verbose` those of all."""
    logging.basicConfig(
        level=logging.INFO if verbose and is_main_process() else logging.WARNING,
        format="%(message)s",
        stream=sys.stderr,
    )
    if is_main_process():
        for name in ("probe_eval", "walt_tokenizer"):
            logging.getLogger(name).setLevel(logging.INFO)


def start() -> Any:
    """The Accelerate handle."""
    from probe_eval.distributed import create_accelerator

    return create_accelerator()


def demo(words: list[str]) -> int:
    """`probe-eval demo`."""
    config = parse(DemoConfig, words, "demo")
    from probe_eval.demo import run_demo

    run_demo(config, start())
    return 0


def embed(words: list[str]) -> int:
    """`probe-eval embed PROMPT...`."""
    given = parse(Embed, words, "embed")
    from probe_eval.text import run_embed

    accelerator = start()
    text = run_embed(given.prompts, plain(EmbedConfig, given), accelerator)
    accelerator.print(f"{len(text.prompts)} prompts, width {text.width}  {given.output}")
    return 0


def generate(words: list[str]) -> int:
    """`probe-eval generate`."""
    config = parse(GenerateConfig, words, "generate")
    from probe_eval.generate import run_generate

    accelerator = start()
    record = run_generate(config, accelerator)
    samples = record["samples"]
    shape = f"{samples['frames']} x {samples['height']} x {samples['width']}"
    files = ", ".join(f"{config.output}/{name}" for name in record["files"])
    accelerator.print(f"{samples['number']} samples of {shape}  {files}")
    return 0


def pretrain(words: list[str]) -> int:
    """`probe-eval pretrain tokenizer`, `... twins` and `... walt`."""
    if not words or words[0] in ("-h", "--help"):
        lines = [f"usage: {PROG} pretrain MODELS [options]", "", "models:"]
        lines += [f"  {name:12s} {command.__doc__}" for name, command in PRETRAINING.items()]
        lines += ["", f"`{PROG} pretrain MODELS --help` lists the options with defaults and units."]
        print("\n".join(lines))  # noqa: T201
        return 0
    return PRETRAINING[known("models to pretrain", words[0], PRETRAINING)](words[1:])


def pretrain_tokenizer(words: list[str]) -> int:
    """a tokenizer of any size, with any part of MAGVIT-v2's objective"""  # noqa: D403, D415
    given = parse(PretrainTokenizer, words, "pretrain tokenizer")
    config = plain(PretrainTokenizerConfig, given)
    from probe_eval.pretrain.tokenizer import describe_tokenizer, run_tokenizer

    accelerator = start()
    if given.dry_run:
        accelerator.print(describe_tokenizer(config, accelerator))
        return 0
    record = run_tokenizer(config, accelerator)
    measured = {name: value for name, value in record["final"].items() if name != "step"}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
    accelerator.print(f"{numbers}  {config.output}/record.json")
    return 0


def pretrain_twins(words: list[str]) -> int:
    """a tokenizer, I-WALT and V-WALT, on the same clips"""  # noqa: D403, D415
    given = parse(PretrainTwins, words, "pretrain twins")
    config = plain(PretrainTwinsConfig, given)
    from probe_eval.pretrain.twins import describe_twins, run_twins

    accelerator = start()
    if given.dry_run:
        accelerator.print(describe_twins(config, accelerator))
        return 0
    accelerator.print(f"wrote {run_twins(config, accelerator)}")
    return 0


def pretrain_walt(words: list[str]) -> int:
    """one denoiser, V-WALT or I-WALT of any size, on a tokenizer's latents"""  # noqa: D403, D415
    given = parse(PretrainWalt, words, "pretrain walt")
    config = plain(PretrainWaltConfig, given)
    from probe_eval.pretrain.walt import describe_walt, run_walt

    accelerator = start()
    if given.dry_run:
        accelerator.print(describe_walt(config, accelerator))
        return 0
    final = run_walt(config, accelerator)["final"]
    accelerator.print(
        f"validation loss {final['validation_loss']:.4f}, that of the best constant "
        f"{final['constant_loss']:.4f}, factor {final['factor']:.2f}  {config.output}/record.json"
    )
    return 0


PRETRAINING: dict[str, Callable[[list[str]], int]] = {
    "tokenizer": pretrain_tokenizer,
    "twins": pretrain_twins,
    "walt": pretrain_walt,
}
"""Models -> what trains them."""


def plain(kind: Any, given: Any) -> Any:
    """The configuration of a run without what the command line adds to it."""
    return kind(**{field.name: getattr(given, field.name) for field in dataclasses.fields(kind)})


def reconstruct(words: list[str]) -> int:
    """`probe-eval reconstruct VIDEO`."""
    given = parse(Reconstruct, words, "reconstruct")
    from probe_eval.reconstruct import run_reconstruct, summary

    accelerator = start()
    record = run_reconstruct(given.video, plain(ReconstructConfig, given), accelerator)
    accelerator.print(f"{summary(record)}  {given.output}/side-by-side.mp4")
    return 0


def run_recipe(words: list[str]) -> int:
    """`probe-eval run RECIPE`."""
    if not words or words[0] in ("-h", "--help"):
        lines = [f"usage: {PROG} run RECIPE [options]", "", "recipes:"]
        lines += [
            f"  {name:24s} {(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items()
        ]
        lines += ["", f"`{PROG} run RECIPE --help` lists the options with the recipe's values."]
        print("\n".join(lines))  # noqa: T201
        return 0
    recipe = known("recipe", words[0], RECIPES)
    default = RECIPES[recipe]()
    config = parse(type(default), words[1:], f"run {recipe}", default)
    from probe_eval.probe import run_probe

    accelerator = start()
    record = run_probe(config, accelerator)
    metric = record["metric"]
    accelerator.print(
        f"{record['task']} on {record['backbone']['name']}: {metric['name']} "
        f"{metric['value']:.4f} (chance {metric['chance']:.4f})  {config.output}/record.json"
    )
    return 0


def show(words: list[str]) -> int:
    """`probe-eval show VIDEO...`."""
    config = parse(Show, words, "show")
    from probe_eval.show import run_show

    run_show(config.videos, config, start())
    return 0


def validate(words: list[str]) -> int:
    """`probe-eval validate DATASET ROOT`."""
    given = parse(Validate, words, "validate")
    config = plain(ValidateConfig, given)
    from probe_eval.validate import as_json, as_text, passes, run_validate

    reports = run_validate(config)
    print(as_json(reports) if given.json else as_text(reports, config.threshold))  # noqa: T201
    return 0 if passes(reports, config.threshold) else 1


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "embed": embed,
    "generate": generate,
    "pretrain": pretrain,
    "reconstruct": reconstruct,
    "run": run_recipe,
    "show": show,
    "validate": validate,
}
"""Name -> command."""
