"""Words to configurations, and mistakes to one line."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from probe_eval import __version__, cli
from probe_eval.config import PretrainConfig
from probe_eval.recipes import RECIPES

ERROR = "probe-eval: error: "


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> None:
    """Nothing that a command sets outlives the test."""
    logger = logging.getLogger("probe_eval")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert all(f"\n  {command} " in out for command in cli.COMMANDS)
    assert err == ""


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"probe-eval {__version__}\n"


def test_run_lists_the_recipes(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in RECIPES)


@pytest.mark.parametrize("command", ["demo", "pretrain", "run moving-shapes-action", "show"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"probe-eval {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demp"], "unknown command 'demp'; known: demo, pretrain, run, show; did you mean 'demo'"),
        (["--output", "x"], "unknown command '--output'"),
        (["run", "moving-shape-action"], "did you mean 'moving-shapes-action'?"),
        (["run", "x"], "unknown recipe 'x'; known: moving-shapes-action, moving-shapes-shape"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(ERROR)
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("show a.mp4 --blok 3", "--blok"),
        ("show a.mp4 --block three", "three"),
        ("pretrain --tokenizer.steps 1", "warmup_steps"),
        ("run moving-shapes-action --optim.steps 0", "steps 0 must be at least 1"),
        ("run moving-shapes-action --optim.warmup-steps 999", "warmup_steps 999"),
        ("run moving-shapes-action --readout.time late", "late"),
        ("demo --seeds a", "seeds"),
    ],
)
def test_a_wrong_flag_is_named(words: str, named: str, capsys: pytest.CaptureFixture) -> None:
    try:
        status = cli.main(words.split())
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert named in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\nlines   here"), "two lines here"),
        (FileNotFoundError(2, "No such file", "x.mp4"), "[Errno 2] No such file: 'x.mp4'"),
        (ImportError("pip install x"), "pip install x"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_of_a_command_becomes_one_line(
    error: Exception, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "demo", fail)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == f"{ERROR}{message}\n"
    with pytest.raises(type(error)):
        cli.main(["demo", "--debug"])


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "demo", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_an_interrupt_says_how_to_go_on(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "demo", stop)
    assert cli.main(["demo"]) == 130
    assert "resumes" in capsys.readouterr().err


def test_flags_reach_the_configuration() -> None:
    words = ["--walt-size", "tiny", "--video-walt.steps", "60", "--data.root", "videos"]
    config = cli.parse(PretrainConfig, words, "pretrain")
    assert config.video_walt.steps == 60
    assert config.video_walt.batch_size == PretrainConfig().video_walt.batch_size
    assert config.data.root == "videos"


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from probe_eval.cli import main\n"
        "for words in (['--help'], ['--version'], ['run'], ['nothing']): main(words)\n"
        "try: main(['run', 'moving-shapes-action', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'accelerate',"
        " 'matplotlib', 'numpy', 'av'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"
