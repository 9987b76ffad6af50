"""Weights that a module has no use for: Flax leaves them aside, torch refuses them.

Only names that our stacks give count. What a subclass, or a module that shares its
scope (`nn.share_scope`), has beside them is its own.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

_LAYER = re.compile(r"layer_\d+(_reverse)?")
_GATE = re.compile(r"[ih][ifgorzn]?")


def require_own_weights(
    params: Mapping[str, Any],
    layers: Collection[str],
    options: Mapping[str, Any],
) -> None:
    """Nothing in `params` belongs to another stack.

    Args:
        params: what stands under `'params'`.
        layers: the names of the layers' trees.
        options: of the stack, by torch's names: those that decide what weights it has.

    Raises:
        ValueError: layers, directions, biases or projections that this one has not, or
            torch's names.
    """
    if "weight_ih_l0" in params:
        raise ValueError(
            "params: expected names as layer_0, got torch's, weight_ih_l0; convert "
            "them with params_from_torch"
        )
    unexpected = [name for name in params if _LAYER.fullmatch(name)]
    unexpected = [name for name in unexpected if name not in layers]
    for layer in layers:
        entries = _entries(params.get(layer))
        if not options["bias"]:
            gates = [name for name in entries if _GATE.fullmatch(name)]
            biased = [g for g in gates if "bias" in _entries(entries[g])]
            unexpected += [f"{layer}/{gate}/bias" for gate in biased]
        # Of a GRU, which has `ir` as well, it is a gate.
        if not options.get("proj_size") and "hr" in entries and "ir" not in entries:
            unexpected.append(f"{layer}/hr")
    if unexpected:
        of_stack = ", ".join(f"{name}={value}" for name, value in options.items())
        raise ValueError(
            f"params: unexpected {', '.join(sorted(unexpected))}; expected the weights "
            f"of a stack with {of_stack}"
        )


def require_no_attention(params: Mapping[str, Any], pooling: str) -> None:
    """`params` are not those of a classifier whose attention `pooling` does without."""
    if "attention" in params:
        raise ValueError(
            f"params: unexpected attention; expected the weights of a classifier with "
            f"pooling={pooling!r}"
        )


def _entries(tree: Any) -> Mapping[str, Any]:
    """None, where there is no tree; Flax has an error for that."""
    return tree if isinstance(tree, Mapping) else {}
