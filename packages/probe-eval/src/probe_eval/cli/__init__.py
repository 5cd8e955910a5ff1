"""The command line: frozen configurations in, one line per error out.

Each command is a file of this package, which is imported when the command is used, and which
imports torch only after the arguments have been understood.
"""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from probe_eval.cli.console import ReaderGone, one_document, say
from probe_eval.cli.parsing import PROG, known
from probe_eval.distributed import is_main_process

SUMMARY = """Probes frozen image and video models with light readouts.

commands:
  cache        what is kept on disk for later runs: list it, verify it, make room
  completion   print what makes a shell complete commands, recipes and options
  demo         pretrain tiny twins, probe them, draw them, write one page (start here)
  embed        write the states of prompts from a text encoder to a file
  generate     make images or videos from a trained denoiser
  ls           list the records of a folder
  pretrain     train a tokenizer; a denoiser on it; or a tokenizer, I-WALT and V-WALT
  reconstruct  put a video beside what a tokenizer makes of it, and measure it
  report       turn records into tables and figures
  run          train one readout on frozen features and write its record
  show         draw frames and the features of both twins for video files
  sweep        train readouts for many tasks, blocks, noise levels and seeds on shared forwards
  validate     say how much of a data set is there, and what of it cannot be read

options:
  -h, --help   this text; after a command, that command's options with defaults and units
  --version    the version
  --json       say the outcome, or what is wrong, as one JSON document
  -v           say more: what every package logs
  --debug      on an error, the whole traceback

`accelerate launch -m probe_eval COMMAND ...` runs a command on many processes.
"""
COMMANDS: dict[str, str] = {
    "cache": "probe_eval.cli.cache:cache",
    "completion": "probe_eval.cli.completion:completion",
    "demo": "probe_eval.cli.demo:demo",
    "embed": "probe_eval.cli.embed:embed",
    "generate": "probe_eval.cli.generate:generate",
    "ls": "probe_eval.cli.ls:ls",
    "pretrain": "probe_eval.cli.pretrain:pretrain",
    "reconstruct": "probe_eval.cli.reconstruct:reconstruct",
    "report": "probe_eval.cli.report:report",
    "run": "probe_eval.cli.run:run",
    "show": "probe_eval.cli.show:show",
    "sweep": "probe_eval.cli.sweep:sweep",
    "validate": "probe_eval.cli.validate:validate",
}
"""Name -> `module:function`; the function takes the words after the name, and returns the status.
"""
FLAGS = ("--debug", "--json", "-v")
"""What every command takes, anywhere in the line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0; 1 where a command looked and found something wanting, as `validate`
        does; 2 after bad input, which is told in one line; 130 after an interrupt.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    words = [word for word in given if word not in FLAGS]
    debug, as_json, verbose = (flag in given for flag in FLAGS)
    start_logging(verbose)
    # Read when torch is imported. Threads of GNU OpenMP spin for long while they wait, which makes
    # a run ten times slower as soon as another program wants a core; not to spin at all makes it
    # twice as slow on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        with one_document(as_json):
            return attempt(words, debug=debug)
    except ReaderGone:
        return 0


def attempt(words: list[str], *, debug: bool) -> int:
    """Runs one command, and says in one line what is wrong.

    Args:
        words: the command and what follows it.
        debug: whether errors are raised in place of told.
    """
    try:
        return dispatch(words)
    except SystemExit as stop:
        if stop.code:
            raise
        return 0
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        message, status = " ".join(str(error).split()) or type(error).__name__, 2
        print(f"{PROG}: error: {message}", file=sys.stderr)  # noqa: T201
    except KeyboardInterrupt:
        if debug:
            raise
        message, status = "stopped; the same command resumes", 130
        print(f"{PROG}: {message}", file=sys.stderr)  # noqa: T201
    say("", {"error": message})
    return status


def dispatch(words: list[str]) -> int:
    """Finds the command and runs it.

    Raises:
        ValueError: for an unknown command, or whatever the command refuses.
    """
    if not words or words[0] in ("-h", "--help"):
        say(SUMMARY.rstrip("\n"), {"help": SUMMARY, "commands": list(COMMANDS)})
        return 0
    if words[0] == "--version":
        from probe_eval import __version__

        say(f"{PROG} {__version__}", {"version": __version__})
        return 0
    return find_command(known("command", words[0], COMMANDS))(words[1:])


def find_command(name: str) -> Callable[[list[str]], int]:
    """A command of `COMMANDS`."""
    module, function = COMMANDS[name].split(":")
    return getattr(importlib.import_module(module), function)


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
