"""The examples of the README run as they are printed, one after another."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
@pytest.mark.skipif(not README.exists(), reason="the README is not beside the tests")
def test_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    for line in README.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `") and line.count("|") == 6:
            name, *_, parameters = (cell.strip(" `") for cell in line.split("|")[1:-1])
            assert f"{name} {parameters}" in printed
    assert len(blocks) >= 7
