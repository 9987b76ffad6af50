"""Training that follows torch's trajectory although torch has two biases per gate."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from flax_lstm import _validation as check
from flax_lstm._dtypes import at_least_float32
from flax_lstm._torch_layout import SUMMED_BIASES

if TYPE_CHECKING:
    import optax

# What torch adds to the norm that it divides by.
_TORCH_EPSILON = 1e-6


def scale_by_torch_biases() -> "optax.GradientTransformation":
    r"""Doubles the updates of biases that each stand for the sum of two torch biases.

    torch trains :math:`b_{ih}` and :math:`b_{hh}`, which get the same gradient, and
    each takes the optimizer's step :math:`u`: their sum moves by :math:`2u`. Here
    the sum is the parameter, so its step has to be doubled. The two biases of a GRU's
    gate n are two here as well, and are left alone.

    Chain it after whatever computes the step's direction and before any weight decay,
    which torch applies to each bias and so once to their sum::

        optax.chain(optax.scale_by_adam(), scale_by_torch_biases(),
                    optax.add_decayed_weights(1e-2), optax.scale_by_learning_rate(1e-3))

    Without weight decay it can follow the whole optimizer:
    `optax.chain(optax.adam(1e-3), scale_by_torch_biases())`.

    Exact for every elementwise optimizer (SGD, momentum, RMSProp, Adam and its
    variants); for clipping by the global norm there is `clip_by_torch_global_norm`.
    Not covered: whatever else combines several elements, such as LARS, LAMB and
    Shampoo; and weight decay added to the gradient (`weight_decay` of torch's Adam,
    RMSProp and Adagrad), since that would need the two biases separately. SGD's can be
    followed, with momentum too, as its steps are linear in the gradients: double those,
    before the decay::

        optax.chain(scale_by_torch_biases(), optax.add_decayed_weights(1e-4),
                    optax.sgd(0.1, momentum=0.9))

    Returns:
        A stateless `optax.GradientTransformation`. It touches the leaves
        `hi/bias`, `hf/bias`, `hg/bias` and `ho/bias` (LSTM), `ir/bias` and `iz/bias`
        (GRU) and `i/bias` (RNN) anywhere in a tree, nested or flat (as of
        `flax.traverse_util.flatten_dict`, also with `sep` "/" or "."), and no others:
        the head of a classifier has one bias in torch as well. Its updates raise a
        ValueError if no leaf has a name, as inside `optax.flatten`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from flax_lstm import scale_by_torch_biases
        >>> tx = optax.chain(optax.sgd(1.0), scale_by_torch_biases())
        >>> params = {'hi': {'bias': jnp.zeros(1)}, 'head': {'bias': jnp.zeros(1)}}
        >>> grads = {'hi': {'bias': jnp.ones(1)}, 'head': {'bias': jnp.ones(1)}}
        >>> updates, _ = tx.update(grads, tx.init(params))
        >>> float(updates['hi']['bias'][0]), float(updates['head']['bias'][0])
        (-2.0, -1.0)

    Source: the two biases of
    https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
    """
    import optax  # Here, so that `import flax_lstm` does not have to wait for it.

    def double(path, update):
        return 2 * update if _is_summed_bias(path) else update

    def double_all(updates, params):
        _require_names(updates)
        return jax.tree_util.tree_map_with_path(double, updates)

    return optax.stateless(double_all)


def clip_by_torch_global_norm(max_norm: float) -> "optax.GradientTransformation":
    r"""Clips gradients as torch's `clip_grad_norm_` does, with both biases in the norm.

    The norm counts the gradient of each bias that stands for the sum of two torch
    biases twice, as each of those has it:

    .. math::
        N = \sqrt{\sum_w |g_w|^2 + 2 \sum_b |g_b|^2}, \quad
        g' = g · \min\left(1, \frac{\text{max\_norm}}{N + 10^{-6}}\right)

    Chain it before the optimizer, as torch clips before the step::

        optax.chain(clip_by_torch_global_norm(1.0), optax.adam(1e-3),
                    scale_by_torch_biases())

    Args:
        max_norm: the largest norm, as torch counts it, positive; a number, or a scalar
            JAX array (as of `optax.inject_hyperparams`), which is not checked.

    Returns:
        A stateless `optax.GradientTransformation` of trees in which the biases that
        count twice are those of `scale_by_torch_biases`. The norm is summed up in
        float32 at least. NaN and infinity spread to the other gradients as in torch. A
        tree without names is a ValueError.

    Raises:
        TypeError, ValueError: `max_norm` is not a positive number.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from flax_lstm import clip_by_torch_global_norm
        >>> tx = clip_by_torch_global_norm(1.0)
        >>> grads = {'hi': {'bias': jnp.ones(2), 'kernel': jnp.ones((2, 6))}}
        >>> updates, _ = tx.update(grads, tx.init(grads))
        >>> f"{updates['hi']['bias'][0]:.3f}"
        '0.250'

    Source: `torch.nn.utils.clip_grad_norm_
    <https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html>`_
    """
    import optax

    if not isinstance(max_norm, jax.Array):
        check.require_positive_number("max_norm", max_norm)

    def sum_of_squares(path, gradient):
        wide = gradient.astype(at_least_float32(gradient.dtype))
        squares = jnp.real(wide * jnp.conj(wide))
        return jnp.sum(squares) * (2 if _is_summed_bias(path) else 1)

    def clip(gradients, params):
        _require_names(gradients)
        sums = jax.tree_util.tree_map_with_path(sum_of_squares, gradients)
        norm = jnp.sqrt(sum(jax.tree.leaves(sums)))
        scale = jnp.minimum(1, max_norm / (norm + _TORCH_EPSILON))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)

    return optax.stateless(clip)


def _require_names(updates: Any) -> None:
    """Without names no bias is one of torch's two."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    if paths and not any(_names(path) for path in paths):
        raise ValueError(
            "updates: expected a tree with the parameters' names, such as hi/bias, got "
            "arrays without names; use this transformation outside of optax.flatten"
        )


def _is_summed_bias(path: tuple[Any, ...]) -> bool:
    # The path of a boxed parameter (with metadata) has more entries after these.
    *_, module, name = ["", "", *_names(path)]
    return module in SUMMED_BIASES and name == "bias"


def _names(path: tuple[Any, ...]) -> list[str]:
    names: list[str] = []
    for entry in path:
        key = getattr(entry, "key", None)
        # A flat tree's keys are whole paths, as tuples or joined.
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, str):
                names += part.replace(".", "/").split("/")
    return names
