"""Sizes of the work that is timed, and examples of them."""

from typing import NamedTuple

import numpy as np

from experiments.allocator import GATES, step_bytes

CLASSES = 10


class Sizes(NamedTuple):
    """A batch of sequences, and the stack and dense head that classify it."""

    batch: int = 100
    steps: int = 28
    inputs: int = 28
    hidden: int = 128
    layers: int = 2
    cell: str = "lstm"

    @property
    def step_bytes(self) -> int:
        """About how much a training step holds."""
        return step_bytes(self.batch, self.steps, self.hidden, self.layers)

    def flop(self, kind: str) -> int:
        """Additions and multiplications of the stack's products.

        For a step if `kind` is "training", or a batch if it is "inference". Whatever
        else the stack computes is not counted.
        """
        rows = 2 * self.batch * self.steps * GATES[self.cell] * self.hidden
        of_inputs = rows * self.inputs
        forward = of_inputs + rows * self.hidden * (2 * self.layers - 1)
        # Backward it is twice that, less the inputs' gradient, which is not computed.
        return 3 * forward - of_inputs if kind == "training" else forward

    def __str__(self) -> str:
        sizes = f"B {self.batch}, T {self.steps}, H {self.hidden}, L {self.layers}"
        return sizes if self.cell == "lstm" else f"{self.cell.upper()}, {sizes}"


NOTES = Sizes()
"""The study notes' training step on MNIST rows."""


def examples(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Made-up inputs (B, T, I) float32 in [0, 1] and labels (B,) int32."""
    rng = np.random.default_rng(0)
    inputs = rng.random((sizes.batch, sizes.steps, sizes.inputs), np.float32)
    return inputs, rng.integers(0, CLASSES, sizes.batch, dtype=np.int32)
