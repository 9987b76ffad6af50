"""How a stack is called whose cell has no state but h: torch.nn.RNN and GRU."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jax.typing import ArrayLike

from flax_lstm._stack import RecurrentStack


class HiddenStateStack(RecurrentStack, kw_only=True):
    """A `RecurrentStack` that takes `h_0` and returns `h_n`, arrays, not tuples."""

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
                floating. A floating dtype is cast as Flax casts, an integer one
                is refused.
            hx: `h_0` of shape (L·D, B, H), or (L·D, H) with unbatched input;
                floating. Rows are in torch's order: layer 0 forward, layer 0
                reverse, layer 1 forward, … None is zeros. The returned state can be
                passed to continue a sequence.
            seq_lengths: (B,) integers, how many steps of each row count, in place
                of a PackedSequence; None if all do. Known values outside [0, T]
                are an error; values traced by jit or vmap are clipped to [0, T].
            deterministic: False applies dropout, which needs
                `rngs={'dropout': key}`.

        Returns:
            `output, h_n`, in the dtype of the computation. `output` is (T, B, D·H),
            (B, T, D·H) if batch_first, or (T, D·H), the last layer's h at every
            step, and zeros behind a row's end. `h_n` (L·D, B, H) is the state after
            each row's own last step (the initial one for a length of 0).

        Raises:
            TypeError: a non-floating input or state, non-integer lengths, a state
                that is no array, a `deterministic` that is no bool.
            ValueError: a wrong rank, size, shape or length, an empty sequence,
                lengths with unbatched input, a missing dropout key, weights of
                another stack.
        """
        return self.run(input, hx, seq_lengths, deterministic)
