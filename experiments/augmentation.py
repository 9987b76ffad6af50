"""Random geometric distortions of a batch's images, inside the compiled step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

_GRID = (5, 5)


@dataclasses.dataclass(frozen=True)
class Warp:
    """Bounds of an image's warp; all but `elastic` are drawn uniformly within ± them.

    Attributes:
        shift: of either axis, as a part of the image's height or width.
        rotation: in degrees.
        scale: of either axis, as the logarithm of the factor.
        shear: sideways, as a part of the distance from the middle row.
        elastic: standard deviation, as a part of the image's width, of the distances
            by which the points of a coarse grid are moved, and smoothly what lies
            between them (after Simard et al. 2003, "Best Practices for Convolutional
            Neural Networks").
    """

    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0


def warped(warp: Warp, key: jax.Array, rows: jax.Array, images: jax.Array) -> jax.Array:
    """Images, each warped by random values of its own, which depend on its row alone.

    Like dropout's masks they belong to the example, whichever device computes them.

    Args:
        warp: the bounds.
        key: of the step.
        rows: (B,) integers, the number of each image in the whole batch.
        images: (B, height, width) floating; 0 is assumed around them.

    Returns:
        (B, height, width), linearly interpolated.
    """
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(rows)
    return jax.vmap(functools.partial(_warped_image, warp))(keys, images)


def _warped_image(warp: Warp, key: jax.Array, image: jax.Array) -> jax.Array:
    size = jnp.array(image.shape, image.dtype)
    keys = jax.random.split(key, 5)
    rotation_key, scale_key, shear_key, shift_key, elastic_key = keys

    def draw(key, bound, shape=()):
        return jax.random.uniform(key, shape, image.dtype, -bound, bound)

    angle = jnp.deg2rad(draw(rotation_key, warp.rotation))
    rotation = jnp.array(
        [[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]
    )
    shear = jnp.eye(2).at[1, 0].set(draw(shear_key, warp.shear))
    scale = jnp.exp(draw(scale_key, warp.scale, (2,)))
    shift = size * draw(shift_key, warp.shift, (2,))

    # Each pixel of the result takes what lies at `source` in the image.
    middle = (size - 1) / 2
    target = jnp.indices(image.shape).reshape(2, -1) - middle[:, None]
    source = (rotation @ shear * scale) @ target + (middle + shift)[:, None]
    if warp.elastic:
        moves = jax.random.normal(elastic_key, (2, *_GRID), image.dtype)
        moves = jax.image.resize(moves, (2, *image.shape), "cubic").reshape(2, -1)
        source += size[1] * warp.elastic * moves
    values = map_coordinates(image, list(source), order=1, mode="constant")
    return values.reshape(image.shape)
