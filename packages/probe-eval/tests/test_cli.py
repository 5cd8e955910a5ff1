"""Words to configurations, and mistakes to one line."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from probe_eval import __version__, cli
from probe_eval.cli import demo as commands
from probe_eval.cli.console import one_document, plain_values, say
from probe_eval.cli.parsing import parse, plain
from probe_eval.cli.pretrain import PretrainTwins
from probe_eval.cli.run import Run, take_preset
from probe_eval.config import OptimConfig
from probe_eval.pretrain.config import LossWeights, PretrainTwinsConfig
from probe_eval.recipes import RECIPES, recipe

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
        *(name for name in cli.COMMANDS if name not in ("cache", "pretrain", "run")),
        *("run moving-shapes-action", "cache ls", "cache verify", "cache gc"),
        *("pretrain tokenizer", "pretrain twins", "pretrain walt"),
    ],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    assert f"usage: probe-eval {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["demp"],
            "unknown command 'demp'; known: cache, completion, demo, embed, generate, ls, "
            "pretrain, reconstruct, report, run, show, sweep, validate; did you mean 'demo'",
        ),
        (["--output", "x"], "unknown command '--output'"),
        (["run", "moving-shape-action"], "did you mean 'moving-shapes-action'?"),
        (
            ["pretrain", "twin"],
            "unknown models to pretrain 'twin'; known: tokenizer, twins, walt;",
        ),
        (["pretrain", "--output", "x"], "unknown models to pretrain '--output'; known: tokenizer"),
        (["run", "x"], "unknown recipe 'x'; known: imagenet, "),
        (["run", "ssv2", "--preset", "smok"], "unknown preset 'smok'; known: smoke, short, paper"),
        (["run", "ssv2", "--preset"], "--preset needs a value: smoke, short or paper"),
        (["cache", "list"], "unknown action 'list'; known: ls, verify, gc"),
        (["completion", "csh"], "unknown shell 'csh'; known: bash, zsh, fish; did you mean"),
        (["completion", "bash", "zsh"], "takes one shell, and not 'zsh' as well"),
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

    monkeypatch.setattr(commands, "demo", fail)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == f"{ERROR}{message}\n"
    with pytest.raises(type(error)):
        cli.main(["demo", "--debug"])


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "demo", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_a_mistake_of_ours_is_a_document_too(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> int:
        say("", {"half": "way"})
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(commands, "demo", fail)
    with pytest.raises(RuntimeError):
        cli.main(["demo", "--json"])
    assert json.loads(capsys.readouterr().out) == {"error": "out of memory"}


def test_only_a_reader_that_went_away_is_no_error(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> int:
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr(commands, "demo", fail)
    assert cli.main(["demo"]) == 2
    assert "of a worker" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [(["--version"], "1"), (["--version", "--json"], ""), (["ls", "--help"], "")],
)
def test_nothing_is_said_to_a_reader_that_went_away(words: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as output:
        done = subprocess.run(
            [sys.executable, "-m", "probe_eval", *words],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_says_how_to_go_on(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "demo", stop)
    assert cli.main(["demo"]) == 130
    assert "resumes" in capsys.readouterr().err


def test_a_preset_gives_the_defaults_that_options_replace() -> None:
    preset, rest = take_preset(["--optim.batch-size", "4", "--preset=smoke"])
    assert (preset, rest) == ("smoke", ["--optim.batch-size", "4"])
    made = recipe("synthetic-depth", preset)
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    given = parse(Run, rest, "run synthetic-depth", Run(**values, preset=preset))
    assert given.optim == dataclasses.replace(made.optim, batch_size=4)
    assert given.data == made.data
    assert recipe("synthetic-depth", "paper").optim.steps != made.optim.steps
    assert take_preset([]) == ("short", [])


def test_flags_reach_the_configuration() -> None:
    words = ["--walt-size", "nano", "--video-walt.steps", "60", "--data.root", "videos"]
    config = parse(PretrainTwinsConfig, words, "pretrain twins")
    assert config.video_walt.steps == 60
    assert config.video_walt.batch_size == PretrainTwinsConfig().video_walt.batch_size
    assert config.data.root == "videos"


def test_the_command_line_adds_nothing_to_a_configuration() -> None:
    given = parse(PretrainTwins, ["--dry-run", "--seed", "3"], "pretrain twins")
    assert given.dry_run
    assert plain(PretrainTwinsConfig, given) == PretrainTwinsConfig(seed=3)


def test_weights_of_losses_are_those_of_the_tokenizer_package() -> None:
    """The configuration is read before torch is, so it has fields of its own."""
    from walt_tokenizer.losses import LossWeights as Published

    assert dataclasses.asdict(LossWeights()) == dataclasses.asdict(Published())


# --- For programs --------------------------------------------------------------------------------


def document(words: list[str], capsys: pytest.CaptureFixture) -> tuple[int, object, str]:
    """Status, the one document that was printed, and what went to the error stream."""
    status = cli.main([*words, "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out), err


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ([], "commands"),
        (["--version"], "version"),
        (["run"], "recipes"),
        (["pretrain"], "models"),
        (["cache"], "actions"),
        (["completion"], "shells"),
        (["show", "--help"], "help"),
        (["run", "ssv2", "--help"], "help"),
        (["completion", "fish"], "script"),
    ],
)
def test_json_is_one_document(words: list[str], key: str, capsys: pytest.CaptureFixture) -> None:
    status, value, _ = document(words, capsys)
    assert status == 0
    assert isinstance(value, dict)
    assert value[key]


@pytest.mark.parametrize(
    "words", [["nothing"], ["run", "x"], ["demo", "--seeds", "a"], ["show", "a.mp4", "--blok", "3"]]
)
def test_json_tells_errors_with_the_same_status(
    words: list[str], capsys: pytest.CaptureFixture
) -> None:
    status, value, err = document(words, capsys)
    assert status == cli.main(words) == 2
    assert isinstance(value, dict)
    assert f"{ERROR}{value['error']}\n" == err == capsys.readouterr().err


def test_json_keeps_what_else_is_printed_apart(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(words: list[str]) -> int:
        print("a library speaks")  # noqa: T201
        say("for people", {"path": Path("a/b"), "pair": (1, float("inf")), "words": words})
        return 1

    monkeypatch.setattr(commands, "demo", command)
    assert document(["demo", "x"], capsys) == (
        1,
        {"path": "a/b", "pair": [1, None], "words": ["x"]},
        "a library speaks\n",
    )
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().out == "a library speaks\nfor people\n"


def test_json_comes_from_rank_0_alone(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    for words in (["--version"], ["--version", "--json"]):
        assert cli.main(words) == 0
        assert capsys.readouterr().out == ""


def test_an_interrupt_is_a_document_too(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "demo", stop)
    assert document(["demo"], capsys)[:2] == (130, {"error": "stopped; the same command resumes"})


def test_plain_values_are_those_of_json() -> None:
    value = {1: (True, None, "x"), "nan": float("nan"), "deep": [{"path": Path("p")}]}
    assert plain_values(value) == {"1": [True, None, "x"], "nan": None, "deep": [{"path": "p"}]}


def test_nothing_said_is_null(capsys: pytest.CaptureFixture) -> None:
    with one_document(True):
        pass
    assert json.loads(capsys.readouterr().out) is None


# --- Completion ----------------------------------------------------------------------------------

COMPLETE = """
source {script}
function=$(complete -p probe-eval | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
complete() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    $function
    echo "${{COMPREPLY[@]}}"
}}
"""


def test_bash_completes_commands_recipes_and_options(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As a real bash does with the function that the script gives it."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    script = tmp_path / "probe-eval"
    assert cli.main(["completion", "bash"]) == 0
    script.write_text(capsys.readouterr().out)
    optim = {field.name.replace("_", "-") for field in dataclasses.fields(OptimConfig)}
    expected = {
        '""': {*cli.COMMANDS, "-h", "--help"},
        'run ""': {*RECIPES, "-h", "--help"},
        "cache v": {"verify"},
        "run ssv2 --optim.": {f"--optim.{name}" for name in optim},
        "run ssv2 --preset s": {"smoke", "short"},
    }
    lines = [
        COMPLETE.format(script=script),
        *(f"complete probe-eval {words}" for words in expected),
    ]
    done = subprocess.run(
        [bash, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    offered = [set(line.split()) for line in done.stdout.splitlines()]
    assert offered == list(expected.values())


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert ("#compdef probe-eval" if shell == "zsh" else "complete --no-files") in out
    assert "synthetic-depth" in out


# --- What is imported ----------------------------------------------------------------------------


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from probe_eval.cli import main\n"
        "for words in ('--help', '--version', 'run', 'nothing', 'pretrain', 'cache',\n"
        "    'completion bash', 'run ssv2 --help', 'pretrain tokenizer --help', 'sweep --help',\n"
        "    'report --help', 'ls --help', 'cache gc --help'): main(words.split())\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'accelerate',"
        " 'matplotlib', 'numpy', 'av'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"
