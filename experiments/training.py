"""Training: a compiled step over a TrainState, run in chunks of steps.

The examples stay on the devices as uint8. One compiled function runs any number of
steps of an epoch, so the host only decides how many: few enough that a progress bar
moves and a signal is noticed about twice a second, or all if they take less time.
Each device computes its share of a batch's rows; the gradients are summed over the
devices, so that all hold the same parameters.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.augmentation import Warp, warped
from experiments.batches import (
    Batch,
    DeviceSplit,
    Totals,
    add,
    num_batches,
    score,
    shares,
    take_share,
)
from experiments.devices import (
    ROWS,
    device_varying,
    on_every_device,
    replicated,
    sum_of_devices,
)
from experiments.dropout import masks_by_row
from experiments.model_input import ModelInput
from experiments.processes import agree, fetch
from experiments.train_state import TrainState

_CHUNK_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class EpochProgress:
    """How far an epoch has come: `steps` done, and what each device counted in them.

    Each device's own sums are kept, so that a run stopped here continues to the same
    result, bit for bit. `totals` holds NumPy arrays (devices,). `next_chunk` is how
    many steps the next call is to run; results don't depend on it.
    """

    steps: int
    totals: Totals
    next_chunk: int = dataclasses.field(default=1, compare=False)

    def to_json(self) -> dict[str, Any]:
        sums = {name: sums.tolist() for name, sums in self.totals._asdict().items()}
        return {"steps": self.steps, **sums}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "EpochProgress":
        zeros = Totals.zero()._asdict()
        sums = {name: np.asarray(record[name], zeros[name].dtype) for name in zeros}
        return cls(record["steps"], Totals(**sums))

    def for_devices(self, count: int) -> Totals:
        """The sums for `count` devices; all on the first if the number has changed."""
        if len(self.totals.loss) == count:
            return self.totals
        return Totals(*(np.pad([s.sum()], (0, count - 1)) for s in self.totals))

    @property
    def means(self) -> dict[str, float | int]:
        return Totals(*(sums.sum() for sums in self.totals)).means()


class NotFiniteError(Exception):
    """The loss became infinite or NaN, in `step` (from 1) of its epoch."""

    def __init__(self, step: int):
        super().__init__(f"the loss is not finite in step {step}")
        self.step = step


class Epochs(flax.struct.PyTreeNode):
    """Runs epochs over one training split; all but `split` is static."""

    split: DeviceSplit
    batch_size: int = flax.struct.field(pytree_node=False)
    model_input: ModelInput = flax.struct.field(pytree_node=False)
    mesh: Mesh = flax.struct.field(pytree_node=False)
    warp: Warp | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def steps(self) -> int:
        """Number of steps in an epoch; the last one may be a smaller batch."""
        return num_batches(len(self.split.labels), self.batch_size)

    def start(self, before: EpochProgress | None = None) -> EpochProgress:
        """No step done; at the pace of the epoch `before`, if there was one."""
        zeros = (np.zeros(self.mesh.size, zero.dtype) for zero in Totals.zero())
        return EpochProgress(0, Totals(*zeros), before.next_chunk if before else 1)

    def run(
        self,
        state: TrainState,
        epoch: int,
        progress: EpochProgress,
        on_chunk: Callable[[int], int] = lambda steps: 0,
    ) -> tuple[TrainState, EpochProgress]:
        """Continues one epoch over a fresh permutation of the examples.

        Args:
            state: its buffers are donated.
            epoch: number of the epoch, which the permutation follows from.
            progress: where to continue, `start()` for a whole epoch.
            on_chunk: called after every chunk with its number of steps; the epoch is
                left there, in all processes, if it answers other than 0.

        Returns:
            The new state, and how far the epoch has come.

        Raises:
            NotFiniteError: the loss is not finite; the state is lost.
        """
        state = replicated(state, self.mesh)
        order = _shuffled_shares(self, state.shuffle_key, epoch)
        by_device = NamedSharding(self.mesh, PartitionSpec(ROWS))
        sums = jax.tree.map(
            lambda own: jax.make_array_from_callback(
                own.shape, by_device, own.__getitem__
            ),
            progress.for_devices(self.mesh.size),
        )
        done, chunk, leave = progress.steps, progress.next_chunk, 0
        while done < self.steps and not leave:
            start = time.perf_counter()
            last = min(done + chunk, self.steps)
            state, sums, sound = _run_steps(self, state, sums, order, done, last)
            sound_steps = int(fetch(sound).min())
            if sound_steps < last - done:
                raise NotFiniteError(done + sound_steps + 1)
            step_seconds = (time.perf_counter() - start) / (last - done)
            leave = on_chunk(last - done)
            # In a shorter last chunk a step takes longer, for the fixed cost of a call.
            if last - done == chunk:
                chunk = max(1, min(2 * chunk, int(_CHUNK_SECONDS / step_seconds)))
            done = last
            # All processes run the same calls, or they would wait for ever.
            chunk, leave = agree(chunk, leave)
        return state, EpochProgress(done, Totals(*map(fetch, sums)), chunk)


@jax.jit
def _shuffled_shares(epochs: Epochs, key: jax.Array, epoch: int) -> jax.Array:
    key = jax.random.fold_in(key, epoch)
    order = jax.random.permutation(key, len(epochs.split.labels))
    return shares(order, epochs.batch_size, epochs.mesh.size)


@functools.partial(jax.jit, donate_argnames=("state", "sums"))
def _run_steps(epochs: Epochs, state, sums, order, first, last):
    """Steps `first` to `last` (traced, so one program serves every chunk).

    Returns the state, each device's sums (devices,), and the number of steps after
    which these were finite (devices,).
    """
    everywhere, by_device = PartitionSpec(), PartitionSpec(ROWS)

    def inputs_of(share, state):
        images = share.inputs
        if epochs.warp is not None:
            key = jax.random.fold_in(state.warp_key, state.step)
            images = warped(epochs.warp, key, share.rows, images)
        return epochs.model_input.of(images)

    def run(split, state, sums, order, steps):
        def body(step, carry):
            state, sums, sound = carry
            share = take_share(split, order, step, epochs.model_input.white)
            share = share._replace(inputs=inputs_of(share, state))
            state, totals = train_step(state, share)
            sums = add(sums, totals)
            return state, sums, sound + jnp.isfinite(sums.loss)

        own = Totals(*(array[0] for array in sums))
        sound = device_varying(jnp.zeros((), jnp.int32))
        state, *counted = jax.lax.fori_loop(*steps, body, (state, own, sound))
        return state, *jax.tree.map(lambda array: array[None], counted)

    spread = on_every_device(
        run,
        epochs.mesh,
        in_specs=(everywhere, everywhere, by_device, everywhere, everywhere),
        out_specs=(everywhere, by_device, by_device),
    )
    return spread(epochs.split, state, sums, order, (first, last))


def train_step(state: TrainState, share: Batch) -> tuple[TrainState, Totals]:
    """One step on the mean cross-entropy of the batch's real examples.

    To be called inside `on_every_device`.

    Args:
        state: the same on all devices.
        share: this device's share of the batch.

    Returns:
        The new state, the same on all devices, and the totals of the share.
    """
    dropout_key = jax.random.fold_in(state.dropout_key, state.step)
    examples = sum_of_devices(share.weights.sum())

    def loss(params):
        with masks_by_row(share.rows):
            logits = state.apply_fn(
                {"params": params},
                share.inputs,
                deterministic=False,
                rngs={"dropout": dropout_key},
            )
        totals = score(logits, share)
        return totals.loss / examples, totals

    # The parameters are the same on all devices, so the transposition itself sums
    # their gradients over the devices.
    grads, totals = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), totals
