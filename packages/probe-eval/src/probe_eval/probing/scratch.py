"""The scratch folder of a job: what its work is of, and what is removed when that is done.

It holds `tables/` (features and targets), `checkpoints/`, and `job.json`, which says which cells
are in training.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe_eval import runs
from probe_eval.backbone import FrozenBackbone
from probe_eval.config import ProbeConfig
from probe_eval.probing.cells import job_key

JOB_FILE = "job.json"
TABLES_FOLDER = "tables"


def plain_key(cell: ProbeConfig) -> list[Any]:
    """What the cells of a job share, as plain values."""
    return json.loads(json.dumps(job_key(cell), default=dataclasses.asdict))


def read_state(folder: Path, cell: ProbeConfig) -> dict[str, Any] | None:
    """What the work in a scratch folder is of.

    Raises:
        ValueError: if it is of other data, another backbone or another noise level.
    """
    path = folder / JOB_FILE
    if not path.is_file():
        return None
    state = runs.read_json(path)
    if state["key"] != plain_key(cell):
        raise ValueError(
            f"{folder} holds the unfinished work of other settings; finish that first, or delete "
            "the folder"
        )
    return state


def check_state(state: Mapping[str, Any] | None, backbone: FrozenBackbone, folder: Path) -> None:
    """Checks that unfinished work is of the weights that the backbone has now.

    Raises:
        ValueError: naming both hashes.
    """
    if state and state["weights_hash"] != backbone.weights_hash:
        raise ValueError(
            f"the weights of backbone {backbone.name!r} have changed: they are "
            f"{backbone.weights_hash} now, and were {state['weights_hash']} for the unfinished "
            f"work in {folder}; delete that folder, or put the former weights back"
        )


def clear(folder: Path) -> None:
    """Removes what a job keeps in its scratch folder, and the folder if nothing else is there."""
    (folder / JOB_FILE).unlink(missing_ok=True)
    for path in (folder / TABLES_FOLDER, folder / "checkpoints"):
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def give_back(folder: Path, cells: Sequence[ProbeConfig]) -> None:
    """Removes a new job, scratch and claims of its cells, unless it has got as far as features."""
    if (folder / JOB_FILE).is_file() or any((folder / TABLES_FOLDER).glob("features/*/shard-*")):
        return
    clear(folder)
    for cell in cells:
        output = Path(cell.output)
        if [path.name for path in output.iterdir()] == [runs.RUN_FILE]:
            shutil.rmtree(output)
