"""`probe-eval generate`."""

from probe_eval.cli.console import say
from probe_eval.cli.parsing import parse, start
from probe_eval.config import GenerateConfig


def generate(words: list[str]) -> int:
    """Images or videos from a trained denoiser."""
    config = parse(GenerateConfig, words, "generate")
    from probe_eval.generate import run_generate

    record = run_generate(config, start())
    samples = record["samples"]
    shape = f"{samples['frames']} x {samples['height']} x {samples['width']}"
    files = ", ".join(f"{config.output}/{name}" for name in record["files"])
    say(f"{samples['number']} samples of {shape}  {files}", record)
    return 0
