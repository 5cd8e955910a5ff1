"""The import contracts of the root pyproject.toml hold, and notice when they are broken."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT_IMPORTS = "from importlinter.cli import lint_imports_command as main; main()"

# contract -> (the module that breaks it, its only line)
BREACHES = {
    "probe_eval imports the other four, which import no sibling": (
        "probe-datasets/src/probe_datasets/planted.py",
        "import probe_readouts",
    ),
    "Only the WALT backbone and pretraining know walt_core and walt_tokenizer": (
        "probe-eval/src/probe_eval/planted.py",
        "from walt_core import Walt",
    ),
    "Models and readouts need no dataset, training, video or plotting library": (
        "walt-core/src/walt_core/planted.py",
        "import datasets",
    ),
    "Only walt_core.ops.attention imports flash_attn": (
        "walt-core/src/walt_core/planted.py",
        "from flash_attn import flash_attn_func",
    ),
    "Only probe_eval.cli imports tyro": (
        "probe-eval/src/probe_eval/planted.py",
        "def late():\n    import tyro",
    ),
}


def lint_imports(tree: Path) -> tuple[int, str]:
    """The exit status and the output of lint-imports on the sources of a tree."""
    sources = [str(path) for path in sorted(tree.glob("packages/*/src"))]
    done = subprocess.run(
        [sys.executable, "-c", LINT_IMPORTS, "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sources), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_contracts_hold():
    status, output = lint_imports(ROOT)
    assert status == 0, output
    assert f"Contracts: {len(BREACHES)} kept, 0 broken." in output


@pytest.mark.parametrize("contract", BREACHES)
def test_breach_is_named(contract, tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in ROOT.glob("packages/*/src"):
        target = tmp_path / source.relative_to(ROOT)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.mp4"))
    path, line = BREACHES[contract]
    (tmp_path / "packages" / path).write_text(f"{line}\n")

    status, output = lint_imports(tmp_path)

    assert status == 1, output
    assert f"{contract} BROKEN" in output
    assert f"Contracts: {len(BREACHES) - 1} kept, 1 broken." in output
    assert Path(path).stem in output
