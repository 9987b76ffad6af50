"""How an image becomes the sequence that a model reads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

SEQUENCES = ("rows", "pixels", "permuted")
_PERMUTATION_SEED = 0


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """Pixels to numbers, and their order; hashable, so static under `jax.jit`.

    `white` is the pixel value of full ink, which becomes 1. `sequence` is one of

    - `rows`: a row of the image is a step.
    - `pixels`: a pixel is a step, row after row (Le et al. 2015,
      https://arxiv.org/abs/1504.00941).
    - `permuted`: the same pixels in an order that is drawn once and for all.
    """

    white: int
    sequence: str = "rows"

    def shape(self, rows: int, columns: int) -> tuple[int, int]:
        """(T, I) of a (rows, columns) image."""
        return (rows, columns) if self.sequence == "rows" else (rows * columns, 1)

    def of_pixels(self, images: jax.typing.ArrayLike) -> jax.Array:
        """(B, rows, columns) of 0 to `white` to (B, T, I) float32 of 0 to 1."""
        return self.of(jnp.asarray(images).astype(jnp.float32) / self.white)

    def of(self, images: jax.Array) -> jax.Array:
        """(B, rows, columns) to (B, T, I), in any dtype."""
        batch, rows, columns = images.shape
        if self.sequence == "permuted":
            rng = np.random.default_rng(_PERMUTATION_SEED)
            order = rng.permutation(rows * columns)
            images = images.reshape(batch, -1)[:, order]
        return images.reshape(batch, *self.shape(rows, columns))
