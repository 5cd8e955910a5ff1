"""What the cache holds already of the clips that a plan needs; nothing is opened or checked."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from probe_datasets import ClipDataset
from probe_eval.backbone import FrozenBackbone
from probe_eval.config import FeatureConfig
from probe_eval.runs import read_json
from probe_eval.storage.cache import cache_root
from probe_eval.storage.chunks import describe_data, first_readable
from probe_eval.storage.tables import INDEX_FILE


def complete_entries(folder: str, kind: str) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Key and number of rows of every complete entry of a kind."""
    for path in sorted((cache_root(folder) / kind).glob(f"*/{INDEX_FILE}")):
        try:
            index = read_json(path)
            yield index["key"], index["rows"]
        except (ValueError, OSError, KeyError):  # damaged, or removed just now: it holds nothing
            continue


def describe(dataset: ClipDataset) -> dict[str, Any]:
    """What keys say of a split, as it is written in JSON."""
    return json.loads(json.dumps(describe_data(dataset, first_readable(dataset))))


def inputs_held(
    backbone: FrozenBackbone, splits: Sequence[Mapping[str, Any]], config: FeatureConfig
) -> int:
    """Clips whose encoding is kept.

    Args:
        backbone: whose encoder.
        splits: what `describe` says of each.
        config: where the cache lies, and whether there is one.
    """
    if not backbone.encoder_hash or config.cache == "none":
        return 0
    return sum(
        rows
        for key, rows in complete_entries(config.cache_folder, "inputs")
        if key.get("encoder") == backbone.encoder_hash and key.get("data") in splits
    )


def features_held(
    backbone: FrozenBackbone,
    splits: Sequence[Mapping[str, Any]],
    config: FeatureConfig,
    blocks: Sequence[int],
) -> int:
    """Clips whose features after all of some blocks are kept, at the noise level of `config`."""
    if config.cache != "features":
        return 0
    settings = ("timestep", "noise_seed", "average_time", "dtype")
    wanted = {name: getattr(config, name) for name in settings}
    wanted["weights"] = backbone.weights_hash
    held = dict.fromkeys(blocks, 0)
    for key, rows in complete_entries(config.cache_folder, "features"):
        data = key.get("data") or key.get("inputs", {}).get("data")
        same = all(key.get(name) == value for name, value in wanted.items())
        if same and data in splits and key.get("block") in held:
            held[key["block"]] += rows
    return min(held.values())
