"""From a sequence's outputs to one vector, each row by its own length.

The functions take outputs (T, B, F), or (T, F) without lengths; past a row's end the
outputs are zero, as a stack returns them. A row of length 0 gives zeros.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flax_lstm._dtypes import at_least_float32
from flax_lstm._initializers import torch_uniform


def last_step(output: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """Each row's own last valid step, (B, F).

    A row of length 0 reads step 0, where the stack has left zeros; without the
    clip it would read step -1, the last of the padding.
    """
    if lengths is None:
        return output[-1]
    last = jnp.clip(lengths - 1, 0, output.shape[0] - 1)
    return jnp.take_along_axis(output, last[None, :, None], axis=0)[0]


def mean_over_steps(output: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """The mean of each row's own valid steps, (B, F)."""
    total = output.sum(axis=0, dtype=at_least_float32(output.dtype))
    if lengths is None:
        return (total / output.shape[0]).astype(output.dtype)
    steps = jnp.maximum(lengths, 1)[:, None].astype(total.dtype)
    return (total / steps).astype(output.dtype)


class AttentionPooling(nn.Module):
    r"""A mean of the steps, weighted by how well each matches one learned query.

    .. math::
        u_t = \tanh(W h_t + b), \quad
        α_t = \frac{\exp(u_t · q)}{\sum_s \exp(u_s · q)}, \quad
        v = \sum_t α_t h_t

    with both sums over a row's valid steps: the additive attention of Bahdanau et
    al. 2015 (https://arxiv.org/abs/1409.0473), with the one query of Yang et al.
    2016, equations 5 to 7 (https://aclanthology.org/N16-1174).

    Parameters: `projection/{kernel,bias}` (F, F) and (F,), `query/kernel` (F, 1), all
    drawn like torch.nn.Linear's from U(-1/√F, 1/√F).
    """

    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, output: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """(B, F) in the dtype of `output`."""
        width = output.shape[-1]
        # Also the projection: its bias's gradient is a sum over all steps and rows of
        # terms that nearly cancel.
        accurate = at_least_float32(output.dtype)
        init = torch_uniform(width)
        projection = nn.Dense(
            width,
            kernel_init=init,
            bias_init=init,
            dtype=accurate,
            param_dtype=self.param_dtype,
            name="projection",
        )
        query = nn.Dense(
            1,
            use_bias=False,  # A bias would be the same for all steps, and cancel.
            kernel_init=init,
            dtype=accurate,
            param_dtype=self.param_dtype,
            name="query",
        )
        scores = query(jnp.tanh(projection(output)))
        if lengths is not None:
            steps = jnp.arange(output.shape[0], dtype=lengths.dtype)
            valid = steps[:, None] < lengths[None]
            # Finite, so that the weights of a row without any step are finite, too.
            none = jnp.finfo(scores.dtype).min
            scores = jnp.where(valid[..., None], scores, none)
        weights = jax.nn.softmax(scores, axis=0)
        return (weights * output.astype(accurate)).sum(axis=0).astype(output.dtype)
