"""Which devices a run is spread over: one per core, or the accelerators.

With XLA, one CPU device runs an LSTM's small products on little more than one core.
One device per core, each with its share of a batch's rows, works just like several
GPUs.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.errors import RunError
from flax_lstm.native import library
from flax_lstm.native.cores import usable_cores

CELLS_WITH_LOOPS = ("lstm", "gru")
"""Those of which there are native loops."""

ROWS = "rows"
"""Name of the mesh's only axis, over which the rows of a batch are spread."""

# With fewer, the products are too small against the fixed cost of a device's step.
LEAST_ROWS_A_DEVICE = 25
_FORCED_DEVICES = "xla_force_host_platform_device_count"


def require_rows(batch_size: int, num_devices: int | None) -> None:
    """Checks that each of `num_devices` has a row of a batch.

    Raises:
        RunError: there are fewer rows.
    """
    if num_devices is not None and num_devices > batch_size:
        raise RunError(
            f"--num_devices: expected at most {batch_size}, the rows of a batch, got "
            f"{num_devices}"
        )


def require_device() -> None:
    """Starts JAX's backend, which reads the environment (`JAX_PLATFORMS=cuda`).

    Raises:
        RunError: JAX finds no device, for the reason that it gives.
    """
    try:
        jax.devices()
    except Exception as error:  # Where a plugin is missing, an AssertionError.
        reason = str(error) or type(error).__name__
        asked = os.environ.get("JAX_PLATFORMS", "not set")
        raise RunError(
            f"JAX finds no device to run on (JAX_PLATFORMS: {asked}): {reason}"
        ) from error


def require_memory(num_bytes: int, advice: str) -> None:
    """Checks that a CPU's machine has `num_bytes`, beyond which Linux kills a process.

    Raises:
        RunError: it has less; the message ends with the `advice`.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if jax.default_backend() == "cpu" and num_bytes > there:
        raise RunError(
            f"out of memory ({num_bytes / 2**30:,.0f} GiB for the weights, their "
            f"gradients and Adam's means, on a machine with {there / 2**30:,.0f}); "
            f"{advice}"
        )


def claim_cores(num_devices: int | None = None, cell: str = "lstm") -> None:
    """Makes one CPU device per core that this process may use, or `num_devices`.

    The native loops, if they are compiled, use all cores on one device, which is faster
    than one device per core; then one device is made for an LSTM or a GRU.

    To be called before the first array is made: the number of CPU devices can't
    change later. A number that was set in the environment (`XLA_FLAGS`,
    `JAX_NUM_CPU_DEVICES`) and a backend that already runs are left alone.
    """
    chosen = (
        _FORCED_DEVICES in os.environ.get("XLA_FLAGS", "")
        or jax.config.values["jax_num_cpu_devices"] != -1
    )
    if not chosen:
        # JAX refuses (RuntimeError) once a backend runs, whose devices are kept.
        one_is_enough = cell in CELLS_WITH_LOOPS and library.CPU.is_usable()
        count = num_devices or (1 if one_is_enough else usable_cores())
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


def loops_on_cpu(cell: str) -> str:
    """Which loops `implementation='auto'` has for such layers on a CPU."""
    others = "fused" if cell == "lstm" else "scan"
    if cell not in CELLS_WITH_LOOPS:
        return others
    if library.CPU.is_usable():
        return "native"
    return (
        f"{others}; `python -m flax_lstm.native` compiles faster ones, once per machine"
    )


def row_mesh(batch_size: int, num_devices: int | None = None) -> Mesh:
    """A mesh to spread a batch's rows over, with equally many devices per process.

    Args:
        batch_size: rows of a batch.
        num_devices: how many devices of each process; None for as many as get at least
            25 rows each, and at least one.

    Raises:
        RunError: a process has fewer than `num_devices`.
    """
    here = len(jax.local_devices())
    if num_devices is not None and num_devices > here:
        raise RunError(
            f"--num_devices: expected at most the {here} that this process has, got "
            f"{num_devices}"
        )
    processes = jax.process_count()
    enough = batch_size // (LEAST_ROWS_A_DEVICE * processes)
    count = num_devices or max(1, min(here, enough))
    if processes == 1:
        return _mesh(jax.local_devices()[:count])
    chosen: list[jax.Device] = []
    for process in range(processes):
        own = [d for d in jax.devices() if d.process_index == process]
        chosen += own[:count]
    return _mesh(chosen)


def _mesh(devices: list[jax.Device]) -> Mesh:
    axis_types = (AxisType.Auto,)
    return jax.make_mesh(
        (len(devices),), (ROWS,), axis_types=axis_types, devices=devices
    )


def on_every_device(function: Callable[..., Any], mesh: Mesh, in_specs, out_specs):
    """`function` on each device's share, by `jax.shard_map` over ROWS.

    On one device it is `function` itself: a sum over one device would still be a copy
    of all gradients.
    """
    if mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def device_index() -> jax.Array | int:
    """Which of the devices runs this, inside `on_every_device`."""
    return jax.lax.axis_index(ROWS) if _is_one_of_several() else 0


def sum_of_devices(tree: Any) -> Any:
    """The sum of what each device has, inside `on_every_device`."""
    return jax.lax.psum(tree, ROWS) if _is_one_of_several() else tree


def device_varying(tree: Any) -> Any:
    """`tree`, which from here on may differ by device, inside `on_every_device`."""
    return jax.lax.pcast(tree, ROWS, to="varying") if _is_one_of_several() else tree


def _is_one_of_several() -> bool:
    try:
        jax.lax.axis_index(ROWS)
    except NameError:  # No such axis.
        return False
    return True


def replicated(tree: Any, mesh: Mesh) -> Any:
    """`tree`, the same in every process, with every array on every device of `mesh`."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.tree.map(lambda leaf: _replicated_globally(leaf, everywhere), tree)


def _replicated_globally(leaf: Any, everywhere: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf
    leaf = jax.numpy.asarray(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _replicated_globally(jax.random.key_data(leaf), everywhere)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, everywhere, host.__getitem__)


def gathered(share: np.ndarray, total: int, mesh: Mesh) -> jax.Array:
    """All rows, of which each process holds a share, on every device of `mesh`.

    Args:
        share: this process's rows: the `total` rows are divided into one block per
            process, all of equal size (the last may be shorter).
        total: number of rows.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(share, everywhere)
    block = -(-total // jax.process_count())
    rest = [(0, block - len(share)), *[(0, 0)] * (share.ndim - 1)]
    blocks = multihost_utils.process_allgather(np.pad(share, rest), tiled=True)
    return _replicated_globally(blocks[:total], everywhere)
