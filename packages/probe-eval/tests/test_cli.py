"""Words to configurations, and mistakes to one line."""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from probe_eval import __version__, cli
from probe_eval.pretrain.config import LossWeights, PretrainTwinsConfig
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


@pytest.mark.parametrize("words", [["pretrain"], ["pretrain", "-h"], ["pretrain", "--help"]])
def test_pretrain_lists_what_it_trains(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in ("tokenizer", "twins", "walt"))


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "embed", "generate", "run moving-shapes-action", "show", "validate"),
        *("pretrain tokenizer", "pretrain twins", "pretrain walt"),
    ],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"probe-eval {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["demp"],
            "unknown command 'demp'; known: demo, embed, generate, pretrain, reconstruct, run, "
            "show, validate; did you mean 'demo'",
        ),
        (["--output", "x"], "unknown command '--output'"),
        (["run", "moving-shape-action"], "did you mean 'moving-shapes-action'?"),
        (
            ["pretrain", "twin"],
            "unknown models to pretrain 'twin'; known: tokenizer, twins, walt;",
        ),
        (["pretrain", "--output", "x"], "unknown models to pretrain '--output'; known: tokenizer"),
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
        ("pretrain twins --tokenizer.optim.steps 1", "warmup_steps"),
        ("pretrain tokenizer --training.optim.beta1 1", "beta1 1.0 must be 0 or more and below 1"),
        ("pretrain tokenizer --training.ema-decay 1", "ema_decay 1.0 must be 0"),
        ("pretrain tokenizer --training.gan-start-step 9999", "gan_start_step 9999 must be 0 to"),
        ("pretrain tokenizer --training.discriminator-lr 0", "discriminator_lr 0.0 must be"),
        ("pretrain tokenizer --training.weights.r1 -1", "weight r1 -1.0 must not be negative"),
        ("pretrain tokenizer --videos-share 1", "videos_share 1.0 must be above 0 and below 1"),
        ("pretrain tokenizer --sample-clips 0", "sample_clips 0 must be at least 1"),
        ("pretrain walt --windows both", "both"),
        ("pretrain walt --rates.past 2", "rate past 2.0 must be a probability"),
        ("generate --guidance high", "high"),
        ("generate --steps 0", "steps 0 must be 1 to 1000"),
        ("embed words --output a", "--encoder"),
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
    words = ["--walt-size", "nano", "--video-walt.steps", "60", "--data.root", "videos"]
    config = cli.parse(PretrainTwinsConfig, words, "pretrain twins")
    assert config.video_walt.steps == 60
    assert config.video_walt.batch_size == PretrainTwinsConfig().video_walt.batch_size
    assert config.data.root == "videos"


def test_the_command_line_adds_nothing_to_a_configuration() -> None:
    given = cli.parse(cli.PretrainTwins, ["--dry-run", "--seed", "3"], "pretrain twins")
    assert given.dry_run
    assert cli.plain(PretrainTwinsConfig, given) == PretrainTwinsConfig(seed=3)


def test_weights_of_losses_are_those_of_the_tokenizer_package() -> None:
    """The configuration is read before torch is, so it has fields of its own."""
    from walt_tokenizer.losses import LossWeights as Published

    assert dataclasses.asdict(LossWeights()) == dataclasses.asdict(Published())


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from probe_eval.cli import main\n"
        "for words in (['--help'], ['--version'], ['run'], ['nothing']): main(words)\n"
        "main(['pretrain'])\n"
        "for words in (['run', 'moving-shapes-action'], ['pretrain', 'tokenizer']):\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'accelerate',"
        " 'matplotlib', 'numpy', 'av'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"
