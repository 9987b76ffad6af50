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

from experiments.errors import RunError

ROWS = "rows"
"""Name of the mesh's only axis, over which the rows of a batch are spread."""

# With fewer, the products are too small for what a step costs a device anyhow.
_LEAST_ROWS_A_DEVICE = 25
_FORCED_DEVICES = "xla_force_host_platform_device_count"


def claim_cores(num_devices: int | None = None) -> None:
    """Makes one CPU device of every core that this process may use, or `num_devices`.

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
            jax.config.update("jax_num_cpu_devices", num_devices or usable_cores())


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row_mesh(batch_size: int, num_devices: int | None = None) -> Mesh:
    """A mesh of local devices over which a batch's rows are spread.

    Args:
        batch_size: rows of a batch.
        num_devices: how many devices; None is as many as have at least 25 rows each.

    Raises:
        RunError: there are fewer than `num_devices`.
    """
    devices = jax.local_devices()
    if num_devices is not None and num_devices > len(devices):
        raise RunError(
            f"--num_devices: expected at most {len(devices)}, which this process has, "
            f"got {num_devices}"
        )
    most = max(1, min(len(devices), batch_size // _LEAST_ROWS_A_DEVICE))
    count = num_devices or most
    return jax.make_mesh(
        (count,), (ROWS,), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def replicated(tree: Any, mesh: Mesh) -> Any:
    """`tree` with every array on every device of `mesh`."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
