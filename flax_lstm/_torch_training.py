"""Training that follows torch's trajectory although torch has two biases per gate."""

from typing import TYPE_CHECKING

import jax

from flax_lstm._torch_layout import SUMMED_BIASES

if TYPE_CHECKING:
    import optax


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
    variants). Not covered: whatever combines several elements, such as clipping by
    global norm (torch's norm counts these gradients twice), LARS, LAMB and Shampoo; and
    weight decay added to the gradient (`weight_decay` of torch's Adam and SGD), since
    that would need the two biases separately.

    Returns:
        A stateless `optax.GradientTransformation`. It touches the leaves
        `hi/bias`, `hf/bias`, `hg/bias` and `ho/bias` (LSTM), `ir/bias` and `iz/bias`
        (GRU) and `i/bias` (RNN) anywhere in a tree, and no others: the head of a
        classifier has one bias in torch as well.

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
        # The path of a boxed parameter (with metadata) has more entries after these.
        names = [key.key for key in path if hasattr(key, "key")][-2:]
        is_summed = len(names) == 2 and names[0] in SUMMED_BIASES
        return 2 * update if is_summed and names[1] == "bias" else update

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(double, updates)
    )
