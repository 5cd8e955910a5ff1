"""No damaged file crashes or hangs its reader, allocates hugely, or becomes another sample.

The cases run in a process of their own, with a bound on its memory and time, so that it may die.
`PROBE_DAMAGE=200,1000` makes 200 truncations and 1,000 flips of each format instead of a few, and
`DAMAGE_KEEP=FOLDER` keeps the files that went wrong. A short run takes about fifteen seconds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRUNCATIONS, FLIPS = map(int, os.environ.get("PROBE_DAMAGE", "25,60").split(","))
PROGRAM = Path(__file__).parent / "damage_cases.py"
# Checksums cover all that is read of these, so that no flip can change it.
GUARDED = (
    *("MOVi-E", "Waymo v1", "TAP-Vid npz", "pixelSplat chunk", "devkit"),
    *("PNG", "PNG of depth", "PNG of 3 x 16 bits", "PNG of a mask"),
)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("damage")
    arguments = [str(folder), str(TRUNCATIONS), str(FLIPS), "0"]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=180 + 4 * FLIPS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    at = folder / "at"
    where = at.read_text() if at.exists() else "the beginning"
    assert done.returncode == 0, f"died with {done.returncode} at {where}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def test_nothing_crashes_hangs_or_grows(outcomes: dict[str, Any]):
    assert len(outcomes) > 40
    wrong = {name: found["wrong"] for name, found in outcomes.items() if found["wrong"]}
    assert not wrong


def test_what_is_cut_short_is_refused(outcomes: dict[str, Any]):
    """A picture may lack only its end marker; lists may be shorter, or end in a shorter word."""
    for name, found in outcomes.items():
        assert sum(found["cut"].values()) > 0, name
        assert found["cut"].get("refused", 0) > 0, name
        if name in GUARDED or name in ("mp4", "webm", "sens", "TAP-Vid pickle", "JPEG"):
            assert set(found["cut"]) <= {"refused", "equal"}, name


def test_checksums_are_compared(outcomes: dict[str, Any]):
    for name in GUARDED:
        assert set(outcomes[name]["flip"]) <= {"refused", "equal"}, name
        assert outcomes[name]["flip"]["refused"] > 0, name
    for name in ("Waymo v2 images, checked", "Waymo v2 boxes, checked"):
        assert "changed" not in outcomes[name]["flip"], name
