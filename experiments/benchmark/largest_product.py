"""What a machine's cores can do: a product of two large matrices, by either library."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.timing import Work

SIZE = 2048
FLOP = 2 * SIZE**3
WORK = f"float32, {SIZE:,} by {SIZE:,} matrices"
"""What `Comparison.work` says."""


def by_xla() -> Work:
    """On JAX's default device."""
    matrix = jax.device_put(_matrix())
    compiled = jax.jit(jnp.dot).lower(matrix, matrix).compile()
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
    return np.random.default_rng(0).random((SIZE, SIZE), np.float32)
