"""Where a saved model goes, and how it attends: what is chosen when it is loaded."""

import dataclasses
import json
from pathlib import Path

import pytest

from walt_core import Walt


def test_the_loaded_model_goes_where_it_is_told(folder: Path) -> None:
    loaded = Walt.from_pretrained(folder, device="meta")
    assert {value.device.type for value in loaded.state_dict().values()} == {"meta"}


@pytest.mark.usefixtures("_unchecked")
def test_attention_can_be_chosen_anew(saved: Walt, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    loaded = Walt.from_pretrained(folder, attention="sdpa")
    assert config["attention"] == "auto"
    assert loaded.config == dataclasses.replace(saved.config, attention="sdpa")
    with pytest.raises(ValueError, match="attention 'flsh' must be one of auto, math"):
        Walt.from_pretrained(folder, attention="flsh")  # type: ignore[arg-type]
