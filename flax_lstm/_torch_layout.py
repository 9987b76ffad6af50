"""How torch's recurrent modules lay out their weights, and how the cells here do.

A torch weight stacks its gates along its first axis and is the transpose of a Flax
kernel. A torch layer has two biases for every gate; where only their sum matters, the
cell here has one bias, that sum.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

_KEY = re.compile(
    r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(0|[1-9]\d*)(_reverse)?"
)


class CellLayout(NamedTuple):
    """One kind of cell: its gates in torch's order, and where its biases are.

    The kernels of gate `x` are `ix` and `hx`; an RNN has one gate without a name.
    """

    gates: tuple[str, ...]
    summed_on: str  # "i" or "h": which of the two has the sum of torch's biases.
    apart: frozenset[str] = frozenset()  # Gates with both of torch's biases.

    def bias_names(self, gate: str) -> tuple[str, ...]:
        """Which of a gate's modules have a bias: one, or its two in torch's order."""
        if gate in self.apart:
            return f"i{gate}", f"h{gate}"
        return (self.summed_on + gate,)

    def names(self, *, bias: bool, projection: bool) -> list[str]:
        """Names of all entries of one layer's tree."""
        names = [f"{side}{gate}/kernel" for side in "ih" for gate in self.gates]
        if bias:
            modules = [m for gate in self.gates for m in self.bias_names(gate)]
            names += [f"{module}/bias" for module in modules]
        return names + (["hr/kernel"] if projection else [])


LAYOUTS = {
    "lstm": CellLayout(("i", "f", "g", "o"), summed_on="h"),
    # b_hn is inside r ∘ (W_hn h + b_hn), and so can't be added to b_in.
    "gru": CellLayout(("r", "z", "n"), summed_on="i", apart=frozenset("n")),
    "rnn": CellLayout(("",), summed_on="i"),
}

SUMMED_BIASES = frozenset(
    layout.summed_on + gate
    for layout in LAYOUTS.values()
    for gate in layout.gates
    if gate not in layout.apart
)
"""Modules whose `bias` is the sum of two of torch's."""


def prefixes_in(names: Iterable[str]) -> list[str]:
    """The prefixes with which a recurrent module's first weight is named, sorted."""
    first = "weight_ih_l0"
    return sorted(name.removesuffix(first) for name in names if name.endswith(first))


def cell_of_weights(weights: Mapping[str, Any], prefix: str) -> str:
    """Which kind of cell torch's weights belong to: a key of `LAYOUTS`.

    `weight_hh` is (gates·H, H), so its shape tells. Only an LSTM has a projection, and
    its `weight_hh` is then (4·H, P). The first layer whose shape fits decides; a layer
    of the wrong shape is found later, when all shapes are compared.

    Raises:
        ValueError: no layer has the shape of any kind.
    """
    if any(name.startswith("weight_hr") for name in weights):
        return "lstm"
    kinds = {len(layout.gates): cell for cell, layout in LAYOUTS.items()}
    for name in sorted(weights):
        shape = weights[name].shape
        if name.startswith("weight_hh") and len(shape) == 2 and shape[1]:
            gates, rest = divmod(shape[0], shape[1])
            if gates in kinds and not rest:
                return kinds[gates]
    raise ValueError(
        f"state_dict: wrong shapes: {prefix}weight_hh_l0 expected (4·H, H) of an LSTM, "
        f"(3·H, H) of a GRU or (H, H) of an RNN, got {weights['weight_hh_l0'].shape}"
    )


def cell_of_params(names: Collection[str]) -> str:
    """Which kind of cell has most of the entries `names`: a key of `LAYOUTS`."""
    own = set(names)

    def fitting(cell):
        return len(own.intersection(LAYOUTS[cell].names(bias=True, projection=False)))

    return max(LAYOUTS, key=fitting)


def params_layers(paths: Iterable[str]) -> list[str]:
    """The layers that a stack with entries at `paths` has, `layer_0`, …"""
    names = [path.partition("/")[0] for path in paths]
    stack = StackLayout.named_in(
        name.replace("layer_", "weight_ih_l", 1) for name in names
    )
    return [suffix.replace("_l", "layer_", 1) for suffix in stack.suffixes]


def params_shapes(leaves: Mapping[str, Any], cell: str) -> dict[str, tuple[int, ...]]:
    """The shape that every entry should have, from the sizes in the first layer."""
    gate = LAYOUTS[cell].gates[0]
    sizes = {
        module: leaves[f"layer_0/{module}/kernel"].shape
        for module in (f"i{gate}", f"h{gate}", "hr")
        if f"layer_0/{module}/kernel" in leaves
    }
    input_size = next(iter(sizes[f"i{gate}"]), 0)
    hidden = (0, *sizes[f"h{gate}"])[-1]
    width = (0, *sizes["hr"])[-1] if "hr" in sizes else hidden
    directions = 2 if any("_reverse/" in path for path in leaves) else 1
    shapes: dict[str, tuple[int, ...]] = {}
    for path in leaves:
        layer, module, name = path.split("/")
        is_first = layer in ("layer_0", "layer_0_reverse")
        below = input_size if is_first else directions * width
        if name == "bias":
            shapes[path] = (hidden,)
        elif module == "hr":
            shapes[path] = (hidden, width)
        else:
            shapes[path] = (below if module.startswith("i") else width, hidden)
    return shapes


class StackLayout:
    """The layers, directions, biases and projections that a set of names implies."""

    def __init__(self, count: int, reverse: bool, bias: bool, projection: bool):
        self.suffixes = [
            f"_l{layer}{direction}"
            for layer in range(count)
            for direction in (("", "_reverse") if reverse else ("",))
        ]
        self.directions = 2 if reverse else 1
        self.bias = bias
        self.projection = projection

    @classmethod
    def named_in(cls, names: Iterable[str]) -> "StackLayout":
        matches = [m for m in map(_KEY.fullmatch, names) if m]
        # A stray weight_ih_l999999 must not make us list a million missing keys.
        found = {int(m[2]) for m in matches}
        count = next(k for k in range(len(found) + 1) if k not in found)
        return cls(
            count=max(count, 1),
            reverse=any(m[3] for m in matches),
            bias=any(m[1].startswith("bias") for m in matches) or not matches,
            projection=any(m[1] == "weight_hr" for m in matches),
        )

    def names(self) -> set[str]:
        kinds = ["weight_ih", "weight_hh"]
        kinds += ["bias_ih", "bias_hh"] if self.bias else []
        kinds += ["weight_hr"] if self.projection else []
        return {kind + suffix for suffix in self.suffixes for kind in kinds}

    def output_width(self, weights: Mapping[str, Any], cell: str) -> int:
        return self.directions * self._sizes(weights, cell)[2]

    def shapes(self, weights: Mapping[str, Any], cell: str) -> dict[str, Any]:
        """The shape that every name should have, from the sizes in the first layer."""
        input_size, hidden, width = self._sizes(weights, cell)
        rows = len(LAYOUTS[cell].gates) * hidden
        below = self.directions * width
        expected: dict[str, tuple[int, ...]] = {}
        for suffix in self.suffixes:
            first = suffix in ("_l0", "_l0_reverse")
            expected["weight_ih" + suffix] = rows, input_size if first else below
            expected["weight_hh" + suffix] = rows, width
            expected["bias_ih" + suffix] = expected["bias_hh" + suffix] = (rows,)
            expected["weight_hr" + suffix] = width, hidden
        return {name: expected[name] for name in self.names()}

    def _sizes(self, weights: Mapping[str, Any], cell: str) -> tuple[int, int, int]:
        """(I, H, P), read off the first layer as far as its shapes allow."""
        first = weights["weight_ih_l0"].shape
        hidden = first[0] // len(LAYOUTS[cell].gates) if first else 0
        input_size = first[1] if len(first) > 1 else 0
        proj = weights["weight_hr_l0"].shape[:1] if self.projection else ()
        return input_size, hidden, proj[0] if proj else hidden
