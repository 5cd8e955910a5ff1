"""`probe-eval demo`."""

from probe_eval.cli.console import say
from probe_eval.cli.parsing import parse, start
from probe_eval.recipes import DemoConfig


def demo(words: list[str]) -> int:
    """Everything, small: pretraining, probes, pictures and one page."""
    config = parse(DemoConfig, words, "demo")
    from probe_eval.demo import run_demo

    page = run_demo(config, start())
    say("", {"page": page, "output": config.output})
    return 0
