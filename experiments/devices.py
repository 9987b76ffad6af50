"""Which devices a run is spread over: one per core, or the accelerators.

One CPU device runs an LSTM's small products on little more than one core. One
device per core, each with its share of a batch's rows, is the same program as
several GPUs.
"""

import contextlib
import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

ROWS = "rows"
"""Name of the mesh's only axis, over which the rows of a batch are spread."""

# With fewer, the products are too small for what a step costs a device anyhow.
_LEAST_ROWS_A_DEVICE = 25
_FORCED_DEVICES = "xla_force_host_platform_device_count"


def claim_cores() -> None:
    """Makes one CPU device of every core that this process may use.

    To be called before the first array is made: the number of CPU devices can't
    change later. A number that was chosen outside (`XLA_FLAGS`,
    `JAX_NUM_CPU_DEVICES`) and a backend that already runs are left alone.
    """
    chosen = (
        _FORCED_DEVICES in os.environ.get("XLA_FLAGS", "")
        or jax.config.values["jax_num_cpu_devices"] != -1
    )
    if not chosen:
        # JAX refuses (RuntimeError) once a backend runs, whose devices are kept.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", usable_cores())


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row_mesh(batch_size: int) -> Mesh:
    """A mesh of as many local devices as have at least 25 rows of a batch each."""
    devices = jax.local_devices()
    count = max(1, min(len(devices), batch_size // _LEAST_ROWS_A_DEVICE))
    return jax.make_mesh(
        (count,), (ROWS,), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def replicated(tree: Any, mesh: Mesh) -> Any:
    """`tree` with every array on every device of `mesh`."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
