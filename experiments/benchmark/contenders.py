"""Who is compared: ours, Flax's RNN and torch, and how each process is set up."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, Protocol

import jax

from experiments.allocator import can_keep, keep_freed_memory, keep_if_large
from experiments.benchmark.flax_rnn import FlaxRNN
from experiments.benchmark.ours import Ours, has_native_loops
from experiments.benchmark.sizes import Sizes
from experiments.benchmark.timing import Work
from experiments.devices import claim_cores
from flax_lstm._persistent_lstm import most_units
from flax_lstm.native import library
from flax_lstm.native.cores import usable_cores

STEPS_PER_CALL = 10

OURS, OURS_ONE_DEVICE, OURS_SCAN = "ours", "ours, one device", "our scan, one device"
OURS_FUSED = "ours, fused"
OURS_CUDNN = "ours, cuDNN"
OURS_KERNEL = "ours, persistent kernel"
OURS_DEFAULT_MALLOC = "ours, malloc as it is"
FLAX, TORCH, TORCH_COMPILED = "flax RNN", "torch", "torch.compile"
FLAX_KEPT, TORCH_TUNED = "flax RNN, memory kept", "torch, tuned"
_CHUNKED = {
    name: f"{name}, {STEPS_PER_CALL} steps a call"
    for name in (OURS, OURS_SCAN, OURS_CUDNN, OURS_KERNEL, FLAX, TORCH)
}
OURS_CHUNKED, FLAX_CHUNKED, TORCH_CHUNKED = (
    _CHUNKED[name] for name in (OURS, FLAX, TORCH)
)
OURS_SCAN_CHUNKED, OURS_CUDNN_CHUNKED, OURS_KERNEL_CHUNKED = (
    _CHUNKED[name] for name in (OURS_SCAN, OURS_CUDNN, OURS_KERNEL)
)


class Contender(Protocol):
    """Makes the work that is timed; a call trains `steps_per_call` steps."""

    steps_per_call: int

    def training(self, sizes: Sizes) -> Work: ...

    def inference(self, sizes: Sizes) -> Work: ...

    def eager_inference(self, sizes: Sizes) -> Work: ...

    def eager_gradient(self, sizes: Sizes) -> Work: ...


@dataclasses.dataclass(frozen=True)
class Alone:
    """A contender with a process of its own, and how that process is set up.

    Attributes:
        contender: the one that makes the work.
        keeps_memory: whether freed memory is kept (`experiments/allocator.py`); None
            to decide by the size of the training step, as the experiment does.
        claim: makes the CPU devices for a `cell`, where JAX's one default device is not
            used.
    """

    contender: Contender
    keeps_memory: bool | None = False
    claim: Callable[..., None] | None = None

    def work(self, kind: str, sizes: Sizes) -> Work:
        """Makes `kind`; to be called in that process, before JAX runs."""
        if self.keeps_memory:
            keep_freed_memory()
        elif self.keeps_memory is None:
            keep_if_large(sizes.step_bytes)
        if self.claim is not None:
            self.claim(cell=sizes.cell)
        return getattr(self.contender, kind)(sizes)


@functools.cache
def has_torch() -> bool:
    """Whether torch is installed, and works; says so if it is and doesn't."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        return False
    except (ImportError, OSError) as error:
        print(f"torch is left out: {error}", file=sys.stderr)
        return False
    return True


def in_one_process() -> dict[str, Contender]:
    """All of them, where torch is installed; else ours and Flax's."""
    found: dict[str, Contender] = {
        OURS: Ours("auto", all_devices=True),
        **_one_device(),
        FLAX: FlaxRNN(),
    }
    if has_torch():
        found[TORCH] = _torch()
    return found | _on_gpu()


def _one_device() -> dict[str, Contender]:
    """Ours on one device, where that is not what ours is anyhow."""
    if has_native_loops() or is_on_gpu():
        return {}
    return {OURS_ONE_DEVICE: Ours("auto", all_devices=False)}


def serves(name: str, sizes: Sizes) -> bool:
    """Whether it runs what its name says: too large for the kernel, it runs 'fused'."""
    return (
        name not in (OURS_KERNEL, OURS_KERNEL_CHUNKED) or sizes.hidden <= most_units()
    )


def in_chunks() -> Contender:
    """Ours with several steps a call, as the experiment has them."""
    return Ours("auto", all_devices=True, steps_per_call=STEPS_PER_CALL)


def fused() -> Ours:
    """Ours as it is where nobody has compiled the native loops."""
    return Ours("fused", all_devices=True)


def scan() -> Contender:
    return Ours("scan", all_devices=False)


def torch_compiled() -> Contender:
    return _torch(compiled=True)


def a_device_for_each_core(cell: str) -> None:
    claim_cores(usable_cores(), cell)


def alone() -> dict[str, Alone]:
    """Each with a process of its own.

    Ours is set up as in the experiment, and keeps its memory where a training step of
    that size is large; one more entry leaves malloc's defaults. On a CPU Flax's RNN and
    torch come twice: as their users run them, and with their memory kept, whatever the
    size of the work, and torch tuned (`TorchLSTM`). On a GPU memory is kept anyhow, and
    ours is the fused implementation.
    """
    found = {
        OURS_CHUNKED: Alone(in_chunks(), keeps_memory=None, claim=claim_cores),
        OURS: Alone(Ours("auto", True), keeps_memory=None, claim=claim_cores),
        **{name: Alone(c, keeps_memory=None) for name, c in _one_device().items()},
        FLAX: Alone(FlaxRNN()),
        FLAX_CHUNKED: Alone(FlaxRNN(STEPS_PER_CALL)),
    }
    if has_torch():
        found[TORCH] = Alone(_torch())
        found[TORCH_CHUNKED] = Alone(_torch(steps_per_call=STEPS_PER_CALL))
    for name, contender in _on_gpu().items():
        found[name] = Alone(contender)
    for name, contender in _on_gpu(STEPS_PER_CALL).items():
        found[_CHUNKED[name]] = Alone(contender)
    if is_on_gpu() and has_torch():
        found[TORCH_TUNED] = Alone(_torch(tuned=True))
    if not is_on_gpu():
        found[OURS_FUSED] = Alone(
            fused(), keeps_memory=None, claim=a_device_for_each_core
        )
    if not is_on_gpu() and can_keep():
        found[OURS_DEFAULT_MALLOC] = Alone(Ours("auto", True), claim=claim_cores)
        found[FLAX_KEPT] = Alone(FlaxRNN(), keeps_memory=True)
        if has_torch():
            found[TORCH_TUNED] = Alone(_torch(tuned=True), keeps_memory=True)
    return found


def is_on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def implementations() -> dict[str, str]:
    """Ours by contender: `auto`; on a GPU also all others that there are.

    The kernel if it is compiled.
    """
    found = {OURS: "auto"}
    if is_on_gpu():
        found |= {OURS_SCAN: "scan", OURS_CUDNN: "cudnn"}
        if library.GPU.is_usable():
            found[OURS_KERNEL] = "native"
    return found


def _on_gpu(steps_per_call: int = 1) -> dict[str, Contender]:
    return {
        name: Ours(implementation, all_devices=False, steps_per_call=steps_per_call)
        for name, implementation in implementations().items()
        if name != OURS
    }


def _torch(**options: Any) -> Contender:
    from experiments.benchmark.torch_lstm import TorchLSTM

    return TorchLSTM(usable_cores(), **options)
