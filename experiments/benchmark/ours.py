"""What is timed of ours: the experiment's own training step, and inference."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.batches import Batch
from experiments.benchmark import compiling
from experiments.benchmark.eager import Eager
from experiments.benchmark.sizes import CLASSES, Sizes, examples
from experiments.benchmark.timing import Work
from experiments.devices import (
    CELLS_WITH_LOOPS,
    LEAST_ROWS_A_DEVICE,
    ROWS,
    on_every_device,
    replicated,
)
from experiments.train_state import create_state, optimizer
from experiments.training import train_step
from flax_lstm import CLASSIFIERS, SequenceClassifier
from flax_lstm.native import library

_LEARNING_RATE = 1e-3


class Ours(Eager):
    """A classifier on one device, or with the rows spread over one device per core.

    The native loops use all cores by themselves, and so get one device; so does a
    machine with several GPUs, of which the other contenders use one, too.
    """

    def __init__(
        self,
        implementation: str,
        all_devices: bool,
        remat: bool = False,
        steps_per_call: int = 1,
        num_devices: int | None = None,
    ):
        """`num_devices` is how many devices, whatever the batch.

        None chooses by the size of the work; for the native loops it is one.
        """
        self.steps_per_call = steps_per_call
        self._num_devices = num_devices
        self._implementation = implementation
        self._all_devices = all_devices
        self._remat = remat

    def training(self, sizes: Sizes) -> Work:
        """`steps_per_call` steps: forward, backward, Adam; the state is donated."""
        mesh = self._mesh(sizes)
        state = replicated(self._state(sizes), mesh)
        batch = self._batch(sizes, mesh)
        compiled = compiling.compiled(self._step(mesh).lower(state, batch))

        def work():
            nonlocal state
            state = compiled(state, batch)
            jax.block_until_ready(state)

        return work

    def inference(self, sizes: Sizes) -> Work:
        """Logits of one batch."""
        mesh = self._mesh(sizes)
        model = self._model(sizes)
        params = replicated(self._state(sizes).params, mesh)
        inputs = self._batch(sizes, mesh).inputs

        def logits(params, inputs):
            return model.apply({"params": params}, inputs)

        spread = on_every_device(
            logits,
            mesh,
            in_specs=(PartitionSpec(), PartitionSpec(ROWS)),
            out_specs=PartitionSpec(ROWS),
        )
        compiled = compiling.compiled(jax.jit(spread).lower(params, inputs))
        return lambda: jax.block_until_ready(compiled(params, inputs))

    def example(self, sizes: Sizes) -> tuple[SequenceClassifier, Any, jax.Array]:
        """A model, its parameters, and one batch of inputs."""
        inputs, _ = jax.device_put(examples(sizes))
        return self._model(sizes), self._state(sizes).params, inputs

    def compiling(self, sizes: Sizes) -> Work:
        """Tracing, lowering and compiling the training step anew."""
        mesh = self._mesh(sizes)
        state = replicated(self._state(sizes), mesh)
        batch = self._batch(sizes, mesh)

        def work():
            jax.clear_caches()
            self._step(mesh).lower(state, batch).compile()

        return work

    def _step(self, mesh: Mesh):
        def steps(state, batch):
            return jax.lax.fori_loop(
                0, self.steps_per_call, lambda _, s: train_step(s, batch)[0], state
            )

        everywhere, by_rows = PartitionSpec(), PartitionSpec(ROWS)
        spread = on_every_device(
            steps, mesh, in_specs=(everywhere, by_rows), out_specs=everywhere
        )
        return jax.jit(spread, donate_argnums=0)

    def _mesh(self, sizes: Sizes) -> Mesh:
        devices = jax.local_devices()
        count = min(len(devices), max(1, sizes.batch // LEAST_ROWS_A_DEVICE))
        while sizes.batch % count:
            count -= 1
        has_loops = sizes.cell in CELLS_WITH_LOOPS and has_native_loops()
        is_native = self._implementation == "auto" and has_loops
        spreads = self._all_devices and not is_native and devices[0].platform == "cpu"
        count = count if spreads else 1
        count = self._num_devices or count
        return jax.make_mesh(
            (count,), (ROWS,), axis_types=(AxisType.Auto,), devices=devices[:count]
        )

    def _model(self, sizes: Sizes) -> SequenceClassifier:
        return CLASSIFIERS[sizes.cell](
            CLASSES,
            sizes.inputs,
            sizes.hidden,
            sizes.layers,
            implementation=self._implementation,
            remat=self._remat,
        )

    def _state(self, sizes: Sizes):
        shape = (sizes.steps, sizes.inputs)
        adam = optimizer(_LEARNING_RATE)
        return create_state(self._model(sizes), adam, 0, shape)

    def _batch(self, sizes: Sizes, mesh: Mesh) -> Batch:
        inputs, labels = examples(sizes)
        weights = np.ones(sizes.batch, np.float32)
        rows = np.arange(sizes.batch)
        by_rows = NamedSharding(mesh, PartitionSpec(ROWS))
        return Batch(*jax.device_put((inputs, labels, weights, rows), by_rows))


def has_native_loops() -> bool:
    """Whether 'auto' has the native loops on the devices that are timed."""
    return jax.default_backend() == "cpu" and library.CPU.is_usable()
