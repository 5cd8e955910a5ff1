import re
from collections.abc import Callable
from pathlib import Path

import pytest

from probe_datasets import DATASETS

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_every_example_runs(
    write_video: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    write_video(tmp_path / "clip.mp4")
    for i in range(3):
        write_video(tmp_path / "videos" / f"{i}.mp4")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, example in enumerate(EXAMPLES):
        exec(compile(example, f"{README.name} example {number}", "exec"), names)
        assert capsys.readouterr().out


def test_there_are_examples():
    assert len(EXAMPLES) >= 7


def test_the_table_lists_every_dataset():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\w ]+) \|", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rows == [(spec.name, spec.task) for spec in DATASETS.values()]
