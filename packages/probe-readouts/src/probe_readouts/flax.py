"""Weights of the published Flax modules, as a tree of arrays, into the readouts here.

Axes of the tree: `i` in, `o` out, `h` heads, `d` head width, `t` frames, `c` feature channels.
Dense kernels are `i o` and become `o i`; multi-head kernels are `i h d`, or `h d o` where heads
are joined, and are flattened. Norms call their weight `scale`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange

from probe_readouts.attention import CrossAttentionBlocks
from probe_readouts.attentive import AttentiveReadout
from probe_readouts.depth import DepthReadout
from probe_readouts.pose import PoseReadout
from probe_readouts.readout import Readout
from probe_readouts.tracking import TrackReadout


class _Entry(NamedTuple):
    """Where one of our tensors lies in the tree."""

    key: str
    """Its key."""
    theirs: str
    """Its axes there."""
    ours: str
    """Its axes here."""
    num_heads: int = 1
    """Size of the axis `h`, where there is one."""


_Entries = dict[str, _Entry]


def load_flax(readout: Readout, tree: Mapping[str, Any]) -> None:
    """Copy published Flax weights into a readout, in place.

    The entries of every class; `->` reads "becomes" and `{i}` counts blocks from 0. Dense entries
    have a `kernel` and a `bias`, those marked * no bias; norms have a `scale`.

    `AttentiveReadout`, and `PoseReadout` under `attentive.`:

    | tree | readout |
    |---|---|
    | LayerNorm_0 (with bias), LayerNorm_1 (with bias) | feature_norm, mlp_norm |
    | temporal_posenc/embeddings `1 t 1 c` | time_embedding |
    | query `1 h d` | pooling.query |
    | key_embedding, value_embedding | pooling.key, pooling.value |
    | Dense_0, Dense_1 | attention_output, output |
    | MLP_0/Dense_0, MLP_0/Dense_1 | mlp.expand, mlp.project |

    `DepthReadout`, blocks from `transformer/layer_{i}` to `blocks.{i}`:

    | tree | readout |
    |---|---|
    | transformer/norm_encoder | norm |
    | recon | output |

    `PointTrackReadout` and `BoxTrackReadout`, blocks from `backbone/transformer/layer_{i}` to
    `step.blocks.{i}`; the two layers of an MLP are Dense_0 and Dense_1:

    | tree | readout |
    |---|---|
    | initializer/layers_1 | initializer |
    | backbone/transformer/Dense_0, .../Dense_1 | step.input, step.output |
    | backbone/transformer/norm_encoder | step.norm |
    | predictor, state_layer_norm | step.predictor, step.state_norm |
    | output_values, output_logits | value_head, logit_head |

    Every block:

    | tree | readout |
    |---|---|
    | norm_q, norm_attn | query_norm, mlp_norm |
    | cross_att/dense_query*, dense_key*, dense_value* | query, key, value |
    | cross_att/norm_query, norm_key | query_scale, key_scale |
    | cross_att/dense_out | output |
    | MLP_in, MLP_out | mlp.expand, mlp.project |

    Reference:
        google-deepmind/representations4d, whose modules have these names.

    Args:
        readout: a readout of the sizes of the tree; its own type and device stay.
        tree: arrays by their path in the tree of parameters, joined by "/", without a leading
            "params/".

    Raises:
        ValueError: an entry that is missing, left over, wrongly shaped or not finite (all are
            named and the readout is left as it was), or a readout of another class.
    """
    entries = _entries(readout)
    weights = readout.state_dict()
    assert set(entries) == set(weights), sorted(set(entries) ^ set(weights))
    wanted = {entry.key for entry in entries.values()}
    problems = [f"missing {key}" for key in sorted(wanted - set(tree))]
    problems += [f"left over {key}" for key in sorted(set(tree) - wanted)]
    state = {}
    for name, (key, theirs, ours, num_heads) in entries.items():
        if key not in tree:
            continue
        array = torch.tensor(np.asarray(tree[key], dtype=np.float32))
        sizes = {"h": num_heads} if "h" in theirs.split() else {}
        expected = tuple(rearrange(weights[name], f"{ours} -> {theirs}", **sizes).shape)
        if tuple(array.shape) != expected:
            problems.append(f"{key} is {tuple(array.shape)}, expected {expected}")
        elif not bool(array.isfinite().all()):
            problems.append(f"{key} is not finite")
        else:
            state[name] = rearrange(array, f"{theirs} -> {ours}")
    if problems:
        raise ValueError(
            f"the tree does not fit {type(readout).__name__} of {readout.config}: "
            f"{'; '.join(problems)}; build the readout with the sizes of the tree"
        )
    readout.load_state_dict(state)


def _entries(readout: Readout) -> _Entries:
    """Map every tensor of a readout to its place in the tree."""
    if isinstance(readout, PoseReadout):
        inner = _attentive(readout.attentive)
        return {f"attentive.{name}": entry for name, entry in inner.items()}
    if isinstance(readout, AttentiveReadout):
        return _attentive(readout)
    if isinstance(readout, DepthReadout):
        return {
            **_blocks("blocks", "transformer", readout.blocks),
            **_norm("norm", "transformer/norm_encoder"),
            **_dense("output", "recon"),
        }
    if isinstance(readout, TrackReadout):
        return {
            **_mlp("initializer", "initializer/layers_1"),
            **_dense("step.input", "backbone/transformer/Dense_0"),
            **_blocks("step.blocks", "backbone/transformer", readout.step.blocks),
            **_norm("step.norm", "backbone/transformer/norm_encoder"),
            **_dense("step.output", "backbone/transformer/Dense_1"),
            **_mlp("step.predictor", "predictor"),
            **_norm("step.state_norm", "state_layer_norm"),
            **_mlp("value_head", "output_values"),
            **_mlp("logit_head", "output_logits"),
        }
    raise ValueError(
        f"no Flax weights are known for {type(readout).__name__}; load them into an attentive, "
        "pose, depth or track readout of this package"
    )


def _attentive(readout: AttentiveReadout) -> _Entries:
    """Map the attentive readout."""
    heads = readout.pooling.num_heads
    entries = {
        "time_embedding": _Entry("temporal_posenc/embeddings", "1 t 1 c", "t c"),
        "pooling.query": _Entry("query", "1 h d", "(h d)", heads),
    }
    for ours, theirs in {"key": "key_embedding", "value": "value_embedding"}.items():
        entries |= _heads(f"pooling.{ours}", theirs, heads)
        entries[f"pooling.{ours}.bias"] = _Entry(f"{theirs}/bias", "h d", "(h d)", heads)
    for ours, theirs in {"feature_norm": "LayerNorm_0", "mlp_norm": "LayerNorm_1"}.items():
        entries |= _norm(ours, theirs)
        entries[f"{ours}.bias"] = _Entry(f"{theirs}/bias", "c", "c")
    return {
        **entries,
        **_dense("attention_output", "Dense_0"),
        **_mlp("mlp", "MLP_0"),
        **_dense("output", "Dense_1"),
    }


def _blocks(ours: str, theirs: str, blocks: CrossAttentionBlocks) -> _Entries:
    """Map cross-attention blocks."""
    entries: _Entries = {}
    for index, block in enumerate(blocks):
        name, key = f"{ours}.{index}", f"{theirs}/layer_{index}"
        for part in ("query", "key", "value"):
            entries |= _heads(f"{name}.{part}", f"{key}/cross_att/dense_{part}", block.num_heads)
        for part in ("query", "key"):
            scale = _Entry(f"{key}/cross_att/norm_{part}/scale", "d", "d")
            entries[f"{name}.{part}_scale"] = scale
        joined = f"{key}/cross_att/dense_out"
        kernel = _Entry(f"{joined}/kernel", "h d o", "o (h d)", block.num_heads)
        entries |= _dense(f"{name}.output", joined) | {f"{name}.output.weight": kernel}
        entries |= _norm(f"{name}.query_norm", f"{key}/norm_q")
        entries |= _norm(f"{name}.mlp_norm", f"{key}/norm_attn")
        entries |= _mlp(f"{name}.mlp", key, ("MLP_in", "MLP_out"))
    return entries


def _mlp(ours: str, theirs: str, layers: tuple[str, str] = ("Dense_0", "Dense_1")) -> _Entries:
    """Map the two layers of an MLP."""
    expand, project = (f"{theirs}/{layer}" for layer in layers)
    return _dense(f"{ours}.expand", expand) | _dense(f"{ours}.project", project)


def _dense(ours: str, theirs: str) -> _Entries:
    """Map a linear layer with bias."""
    return {
        f"{ours}.weight": _Entry(f"{theirs}/kernel", "i o", "o i"),
        f"{ours}.bias": _Entry(f"{theirs}/bias", "o", "o"),
    }


def _heads(ours: str, theirs: str, num_heads: int) -> _Entries:
    """Map the kernel of a linear layer whose outputs are heads."""
    return {f"{ours}.weight": _Entry(f"{theirs}/kernel", "i h d", "(h d) i", num_heads)}


def _norm(ours: str, theirs: str) -> _Entries:
    """Map the scale of a norm."""
    return {f"{ours}.weight": _Entry(f"{theirs}/scale", "c", "c")}
