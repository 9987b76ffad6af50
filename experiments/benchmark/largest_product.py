"""What a machine's cores can do: a product of two large matrices, by either library."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import compiling
from experiments.benchmark.timing import Work

CPU_SIZE = 2048
# To call a GPU takes about as long as it does for the product of smaller ones.
GPU_SIZE = 8192


def size_here() -> int:
    """How many rows and columns the matrices have on JAX's default platform."""
    return GPU_SIZE if jax.default_backend() == "gpu" else CPU_SIZE


def flop(size: int) -> int:
    """Floating-point operations of the product."""
    return 2 * size**3


def work_of(size: int) -> str:
    """What `Comparison.work` says."""
    return f"float32, {size:,} by {size:,} matrices"


def by_xla() -> Work:
    """On JAX's default device."""
    matrix = jax.device_put(_matrix())
    compiled = compiling.compiled(jax.jit(jnp.dot).lower(matrix, matrix))
    return lambda: jax.block_until_ready(compiled(matrix, matrix))


def by_torch(threads: int) -> Work:
    """As precise as JAX's product is."""
    import torch

    from experiments.benchmark.torch_lstm import device_matching_jax

    device = device_matching_jax()
    torch.set_num_threads(threads)
    matrix = torch.from_numpy(_matrix()).to(device)

    def work():
        torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()

    return work


def _matrix() -> np.ndarray:
    size = size_here()
    return np.random.default_rng(0).random((size, size), np.float32)
