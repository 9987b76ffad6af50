"""The weights of layers as the one vector that cuDNN takes, and back.

First the kernels of all cells, gate by gate, of x and then of h, as torch has them;
then two biases for each cell, one of which is zero here. Cells are in the order of the
layers, within a layer the reverse direction last.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_lstm._lstm_weights import GATES, Weights


class CudnnOptions(NamedTuple):
    """The calls' arguments besides arrays, in the order of `jax.experimental.rnn`."""

    input_size: int
    hidden_size: int
    num_layers: int
    dropout: float  # Zero: the stack applies it.
    bidirectional: bool
    precision: jax.lax.Precision

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def width(self, layer: int) -> int:
        """Number of features that the layer reads."""
        return self.directions * self.hidden_size if layer else self.input_size


def join(cells: Sequence[Weights]) -> jax.Array:
    """One vector of the weights of all cells."""
    kernels, biases = [], []
    for weights in cells:
        # All four gates as one array: each transpose is a kernel launch on a GPU.
        kernels += [jnp.concatenate(of, axis=-1).T for of in (weights.x, weights.h)]
        none = jnp.zeros_like(weights.h[0][0])
        biases += [*(none,) * len(GATES), *(weights.b or (none,) * len(GATES))]
    return jnp.concatenate([array.ravel() for array in (*kernels, *biases)])


def split(vector: jax.Array, options: CudnnOptions) -> list[Weights]:
    """The inverse of `join`; a cell's bias is the sum of its two."""
    start = 0

    def take(*shape: int) -> jax.Array:
        nonlocal start
        first, start = start, start + math.prod(shape)
        return vector[first:start].reshape(shape)

    def by_gate(*shape: int) -> list[jax.Array]:
        return [take(*shape) for _ in GATES]

    kernels = []
    for layer in range(options.num_layers):
        for _ in range(options.directions):
            of_x = by_gate(options.hidden_size, options.width(layer))
            kernels.append((of_x, by_gate(options.hidden_size, options.hidden_size)))
    cells = []
    for of_x, of_h in kernels:
        pairs = zip(
            by_gate(options.hidden_size), by_gate(options.hidden_size), strict=True
        )
        cells.append(
            Weights(
                x=tuple(kernel.T for kernel in of_x),
                h=tuple(kernel.T for kernel in of_h),
                b=tuple(first + second for first, second in pairs),
                projection=None,
            )
        )
    return cells
