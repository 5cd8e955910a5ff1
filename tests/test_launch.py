"""Every way of starting the program that the documents name."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import probe_eval

ROOT = Path(__file__).parents[1]
VERSION = f"probe-eval {probe_eval.__version__}"
Launch = Callable[..., "subprocess.CompletedProcess[str]"]
Tool = Callable[[str], str]


def test_as_a_module(launch: Launch) -> None:
    done = launch(sys.executable, "-m", "probe_eval", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{VERSION}\n", "")


def test_as_a_console_script(launch: Launch, tool: Tool) -> None:
    done = launch(tool("probe-eval"), "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{VERSION}\n", "")


def test_as_a_file_of_the_checkout(launch: Launch) -> None:
    done = launch(sys.executable, ROOT / "probe-eval", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{VERSION}\n", "")


def test_accelerate_launch_of_the_module(launch: Launch, tool: Tool, tmp_path: Path) -> None:
    """The canonical way, from anywhere; with a command that needs torch and fails at once."""
    words = ["show", "clip.mp4", "--pretrained", tmp_path / "nothing"]
    done = launch(tool("accelerate"), "launch", "-m", "probe_eval", *words)
    errors = [line for line in done.stderr.splitlines() if line.startswith("probe-eval: error:")]
    assert done.returncode != 0
    assert len(errors) == 1
    assert "nothing has no tokenizer/config.json" in errors[0]


def test_accelerate_launch_of_the_console_script(launch: Launch, tool: Tool) -> None:
    script = tool("probe-eval")
    path = {"PATH": f"{Path(script).parent}:/usr/bin:/bin"}
    done = launch(tool("accelerate"), "launch", "--no-python", "probe-eval", "--version", env=path)
    assert done.returncode == 0, done.stderr
    assert VERSION in done.stdout


def test_accelerate_launch_from_the_checkout(launch: Launch, tool: Tool) -> None:
    """`accelerate launch probe-eval`, letter for letter, where the file of that name lies."""
    done = launch(tool("accelerate"), "launch", "probe-eval", "--version", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert VERSION in done.stdout


WATCH = """
import runpy, sys
sys.argv[0] = "probe_eval"
try:
    runpy.run_module("probe_eval", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {"torch", "accelerate", "numpy", "matplotlib", "av", "torchcodec", "walt_core"}
print("loaded:", *sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize("words", ["--help", "run", "run moving-shapes-action --help"])
def test_help_needs_no_torch(launch: Launch, words: str) -> None:
    done = launch(sys.executable, "-c", WATCH, *words.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_another_process_can_import_the_main_module(launch: Launch) -> None:
    """As the loader workers of a spawned process do."""
    code = "import probe_eval.__main__, runpy; runpy.run_path('probe-eval', run_name='__mp_main__')"
    done = launch(sys.executable, "-c", code, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
