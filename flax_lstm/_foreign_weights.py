"""Weights that a module has no use for: Flax ignores them, torch rejects them.

Only names that our stacks use are checked. What a subclass, or a module that shares its
scope (`nn.share_scope`), has besides them is its own.
"""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

from flax_lstm._torch_layout import LAYOUTS, CellLayout
from flax_lstm._validation import shown

_LAYER = re.compile(r"layer_\d+(_reverse)?")


def refuse_foreign_weights(
    params: Mapping[str, Any],
    layers: Collection[str],
    options: Mapping[str, Any],
    layout: CellLayout | None,
) -> None:
    """Checks that nothing in `params` belongs to a different stack.

    Args:
        params: what stands under `'params'`.
        layers: the names of the layers' trees.
        options: the stack's options that decide which weights it has, by torch's names.
        layout: that of its cells; None if unknown, when they may have any weights.

    Raises:
        ValueError: layers, directions, biases or projections that this stack does not
            have, or torch's names.
        TypeError: a layer that is not a tree.
    """
    if "weight_ih_l0" in params:
        raise ValueError(
            "params: expected names such as layer_0, got torch's, weight_ih_l0; "
            "convert them with params_from_torch"
        )
    unexpected = [name for name in params if _LAYER.fullmatch(name)]
    unexpected = [name for name in unexpected if name not in layers]
    if layout is not None:
        bias, projection = options["bias"], bool(options.get("proj_size"))
        own, others = _names(layout, bias, projection)
        for layer in layers:
            tree = params.get(layer, {})
            if not isinstance(tree, Mapping):
                raise TypeError(
                    f"params: expected a mapping of names under {layer}, got "
                    f"{shown(tree)}"
                )
            # Where some of its own are missing, Flax says which.
            if all(_is_in(tree, *name) for name in own):
                found = [name for name in others if _is_in(tree, *name)]
                unexpected += ["/".join((layer, *name)) for name in found]
    if unexpected:
        of_stack = ", ".join(f"{name}={value}" for name, value in options.items())
        raise ValueError(
            f"params: unexpected {', '.join(sorted(unexpected))}; expected the weights "
            f"of a stack with {of_stack}"
        )


def require_params(variables: Mapping[str, Any], entries: Collection[str]) -> None:
    """Checks that a module's `entries` stand under `'params'`, not in its place."""
    if "params" not in variables and any(name in variables for name in entries):
        raise ValueError(
            "variables: expected {'params': params}, got the params without 'params' "
            "around them"
        )


def refuse_foreign_parts(params: Mapping[str, Any], cell: str, pooling: str) -> None:
    """Checks that `params` have no part of a different classifier.

    Raises:
        ValueError: attention that this `pooling` does not use, or another `cell`'s
            stack.
    """
    others = (LAYOUTS.keys() | {"attention"}) - {cell, pooling}
    if unexpected := sorted(others & params.keys()):
        raise ValueError(
            f"params: unexpected {', '.join(unexpected)}; expected the weights of a "
            f"classifier with cell={cell!r}, pooling={pooling!r}"
        )


@functools.cache
def _names(layout, bias, projection):
    """The entries of a layer as pairs: its own, and those that its kind may have."""
    own = set(layout.names(bias=bias, projection=projection))
    others = set(layout.names(bias=True, projection=True))
    # Such as torch's two biases a gate where the cell has their sum.
    others |= {name.replace("kernel", "bias") for name in others}
    others -= own
    return [[tuple(name.split("/")) for name in names] for names in (own, others)]


def _is_in(tree, module, name):
    entries = tree.get(module)
    return isinstance(entries, Mapping) and name in entries
