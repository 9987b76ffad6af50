"""The call of a stack whose cell's only state is h, as of torch.nn.RNN and GRU."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jax.typing import ArrayLike

from flax_lstm._stack import RecurrentStack


class HiddenStateStack(RecurrentStack, kw_only=True):
    """A `RecurrentStack` that takes `h_0` and returns `h_n` as arrays, not tuples."""

    @nn.compact
    def __call__(
        self,
        input: "ArrayLike",
        hx: "ArrayLike | None" = None,
        *,
        seq_lengths: "ArrayLike | Sequence[int] | None" = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the stack over a sequence.

        Args:
            input: (T, B, I), (B, T, I) if batch_first, or unbatched (T, I);
                floating-point. Other floating dtypes are cast, as in Flax; integer
                ones are rejected.
            hx: `h_0` of shape (L·D, B, H), or (L·D, H) with unbatched input;
                floating-point. Rows are in torch's order: layer 0 forward, layer 0
                reverse, layer 1 forward, … None means zeros. The returned state can be
                passed to continue a sequence.
            seq_lengths: (B,) integers, the number of valid steps in each row, in place
                of a PackedSequence; None if all are valid. Concrete values outside
                [0, T] are an error; values traced by jit or vmap are clipped to [0, T].
            deterministic: False applies dropout, which needs
                `rngs={'dropout': key}`.

        Returns:
            `output, h_n`, in the dtype of the computation. `output` is (T, B, D·H),
            (B, T, D·H) if batch_first, or (T, D·H): the last layer's h at every
            step, and zeros past a row's end. `h_n` (L·D, B, H) is the state after
            each row's own last step (the initial one for a length of 0).

        Raises:
            TypeError: a non-floating input or state, non-integer lengths, a state
                that is not an array, a `deterministic` that is not a bool.
            ValueError: a wrong rank, size, shape or length, an empty sequence,
                lengths with unbatched input, a missing dropout key, parameters of
                another stack.
            flax.errors.FlaxError: parameters that are missing or of another shape.
        """
        return self.run(input, hx, seq_lengths, deterministic)
