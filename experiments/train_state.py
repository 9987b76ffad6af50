"""What a run is made of between two steps."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from flax_lstm import SequenceClassifier, scale_by_torch_biases

# A run is what its flags say, and not what JAX_DEFAULT_PRNG_IMPL does.
KEY_IMPLEMENTATION = "threefry2x32"


class TrainState(train_state.TrainState):
    """Flax's TrainState, the keys of all randomness, and a mean of the parameters.

    `mean_params` is the exponential moving average of the parameters, None without one.
    It averages over 1 / (1 - `average_decay`) steps, but never over more than about a
    tenth of those done.
    """

    shuffle_key: jax.Array
    dropout_key: jax.Array
    warp_key: jax.Array
    mean_params: Any = None
    average_decay: float | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def tested_params(self) -> Any:
        """The parameters to test and to predict with."""
        return self.params if self.mean_params is None else self.mean_params

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> "TrainState":
        """One step of the optimizer, and of the mean."""
        new = super().apply_gradients(grads=grads, **kwargs)
        if self.average_decay is None:
            return new
        weight = jnp.maximum(1 - self.average_decay, 10 / (self.step + 10))
        mean = optax.incremental_update(new.params, self.mean_params, weight)
        return new.replace(mean_params=mean)


def optimizer(
    step_size: float | optax.Schedule, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Adam, with compensation for torch's two biases.

    It follows torch's trajectory only without `clip_norm`: the norm that torch clips
    counts each bias's gradient twice.
    """
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    return optax.chain(*clip, optax.adam(step_size), scale_by_torch_biases())


def create_state(
    model: SequenceClassifier,
    optimizer: optax.GradientTransformation,
    seed: int,
    shape: tuple[int, ...],
    average_decay: float | None = None,
) -> TrainState:
    """A fresh state on one device; `shape` (T, I) of one example."""
    key = jax.random.key(seed, impl=KEY_IMPLEMENTATION)
    init_key, shuffle_key, dropout_key, warp_key = jax.random.split(key, 4)
    # Lazily, so that nothing is compiled whose results are not used.
    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = model.lazy_init(init_key, example)["params"]
    return TrainState.create(
        apply_fn=model.apply,
        params=params,
        tx=optimizer,
        shuffle_key=shuffle_key,
        dropout_key=dropout_key,
        warp_key=warp_key,
        # A copy, since a step donates its buffers, which works only once for each.
        mean_params=None if average_decay is None else jax.tree.map(jnp.copy, params),
        average_decay=average_decay,
    )
