"""What is compared with what, section by section."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import jax

from experiments.allocator import keep_freed_memory
from experiments.benchmark import epoch
from experiments.benchmark.child import can_pin, in_process, on_one_core, working
from experiments.benchmark.flax_rnn import FlaxRNN
from experiments.benchmark.importing import import_seconds
from experiments.benchmark.memory import can_measure, peak_bytes
from experiments.benchmark.ours import Ours
from experiments.benchmark.report import Comparison
from experiments.benchmark.sizes import NOTES, Sizes
from experiments.benchmark.timing import Work, in_turn
from experiments.devices import claim_cores, usable_cores

ALL, ONE, SCAN = "ours", "ours, one device", "our scan, one device"
_STEPS_A_CALL = 10
CHUNK = f"ours, {_STEPS_A_CALL} steps a call"
FLAX, TORCH, TORCH_COMPILED = "flax RNN", "torch", "torch.compile"
TORCH_KEPT = "torch, memory kept"
RATIOS = ((ALL, TORCH), (ONE, FLAX), (ALL, FLAX))

GROWTH = {
    "B": [NOTES._replace(batch=batch) for batch in (1, 10, 32, 100, 320, 1000)],
    "T": [NOTES._replace(steps=steps) for steps in (7, 28, 112, 448)],
    "H": [NOTES._replace(hidden=hidden) for hidden in (32, 64, 128, 256, 512)],
    "L": [NOTES._replace(layers=layers) for layers in (1, 2, 4, 8)],
}
_AXIS_FIELDS = {"B": "batch", "T": "steps", "H": "hidden", "L": "layers"}
GRID = [
    Sizes(batch, 28, 28, hidden) for hidden in (32, 128, 512) for batch in (1, 32, 256)
] + [Sizes(batch, 784, 1, hidden) for hidden in (32, 128) for batch in (1, 32)]
_PIXELS = Sizes(32, 784, 1, 128)


class Contender(Protocol):
    """Makes the work that is timed; a call trains `steps_a_call` steps."""

    steps_a_call: int

    def training(self, sizes: Sizes) -> Work: ...

    def inference(self, sizes: Sizes) -> Work: ...


def contenders() -> dict[str, Contender]:
    """All of them, where torch is installed; else ours and Flax's."""
    found: dict[str, Contender] = {
        ALL: Ours("auto", all_devices=True),
        ONE: Ours("auto", all_devices=False),
        FLAX: FlaxRNN(),
    }
    if importlib.util.find_spec("torch"):
        from experiments.benchmark.torch_lstm import TorchLSTM

        found[TORCH] = TorchLSTM(usable_cores())
    return found


def quickly(seconds: float) -> Iterator[Comparison]:
    """Training and inference of the notes' sizes, the least that shows the speed."""
    names = (CHUNK, FLAX, TORCH)
    yield _in_own_processes("training step, a process each", names, seconds)
    for batch in (1, 100):
        yield _inference(contenders(), batch, seconds)


def training_and_inference(seconds: float) -> Iterator[Comparison]:
    """The notes' training step, and inference at three batch sizes.

    With all that there is: our scan, and torch.compile where it works.
    """
    entries = contenders() | {SCAN: Ours("scan", all_devices=False)}
    if TORCH in entries:
        from experiments.benchmark.torch_lstm import TorchLSTM

        entries[TORCH_COMPILED] = TorchLSTM(usable_cores(), compiled=True)
    yield _compare(
        "training step",
        str(NOTES),
        {CHUNK: _in_chunks()} | entries,
        "training",
        NOTES,
        seconds,
        ((CHUNK, TORCH), *RATIOS, (SCAN, FLAX)),
    )
    for batch in (1, 100, 1000):
        yield _inference(entries, batch, seconds)


def _in_chunks() -> Contender:
    return Ours("auto", all_devices=True, steps_a_call=_STEPS_A_CALL)


def _inference(entries: dict[str, Contender], batch: int, seconds: float) -> Comparison:
    sizes = NOTES._replace(batch=batch)
    ratios = (*RATIOS, (SCAN, FLAX))
    return _compare(
        "inference", str(sizes), entries, "inference", sizes, seconds, ratios
    )


def in_own_processes(seconds: float) -> Iterator[Comparison]:
    """The notes' training step where each contender has a process, as for its users.

    In one process they share what glibc's allocator has learned: once XLA has given
    large blocks back, torch's steps no longer return their memory to the system,
    which in a process of their own they do. Ours keeps its memory as the experiment
    does (`experiments/allocator.py`); the others run as they come, and torch once
    more with its memory kept.
    """
    section = "training step, a process each"
    names: tuple[str, ...] = (CHUNK, ALL, ONE, FLAX, TORCH, TORCH_KEPT)
    yield _in_own_processes(section, names, seconds)
    if can_pin():
        section = "training step, a process and one core each"
        with on_one_core():
            names = (ONE, FLAX, TORCH, TORCH_KEPT)
            yield _in_own_processes(section, names, seconds)


def _in_own_processes(section: str, names: Iterable[str], seconds: float) -> Comparison:
    entries = contenders() | {CHUNK: _in_chunks()}
    if TORCH in entries:
        entries[TORCH_KEPT] = entries[TORCH]
    entries = {name: entries[name] for name in names if name in entries}
    with contextlib.ExitStack() as stack:
        works = {
            name: stack.enter_context(
                working(_training, entry, NOTES, name not in (FLAX, TORCH))
            )
            for name, entry in entries.items()
        }
        return compare_works(
            section,
            str(NOTES),
            works,
            seconds,
            (
                (CHUNK, TORCH),
                (CHUNK, FLAX),
                *RATIOS,
                (ONE, TORCH),
                (CHUNK, TORCH_KEPT),
                (ONE, TORCH_KEPT),
            ),
            units={name: entry.steps_a_call for name, entry in entries.items()},
        )


def _training(entry: Contender, sizes: Sizes, keeps_memory: bool) -> Work:
    if keeps_memory:
        keep_freed_memory()
    claim_cores()
    return entry.training(sizes)


def whole_epoch(rounds: int) -> Iterator[Comparison]:
    """An epoch of 60,000 made-up rows and a test pass over 10,000, a process each."""
    with contextlib.ExitStack() as stack:
        works = {ALL: stack.enter_context(working(_epoch_of_ours))}
        if importlib.util.find_spec("torch"):
            works[TORCH] = stack.enter_context(working(_epoch_of_torch, usable_cores()))
        yield compare_works(
            "epoch and test pass, a process each",
            f"60,000 + 10,000 rows, {NOTES}",
            works,
            ratios=((ALL, TORCH),),
            rounds=rounds,
            unit="s",
        )


def _epoch_of_ours() -> Work:
    keep_freed_memory()
    claim_cores()
    return epoch.ours(*epoch.made_up_splits())


def _epoch_of_torch(threads: int) -> Work:
    return epoch.torchs(*epoch.made_up_splits(), threads)


def grid(seconds: float) -> Iterator[Comparison]:
    """Training and inference over sizes from small to large and long."""
    for kind in ("training", "inference"):
        for sizes in GRID:
            yield _compare(
                f"grid, {kind}", str(sizes), contenders(), kind, sizes, seconds, RATIOS
            )


def growth(seconds: float) -> Iterator[tuple[str, Comparison]]:
    """A training step of the notes with one size at a time made larger."""
    for axis, all_sizes in GROWTH.items():
        name = f"growth with {axis}"
        for sizes in all_sizes:
            yield (
                axis,
                _compare(
                    name, str(sizes), contenders(), "training", sizes, seconds, RATIOS
                ),
            )


def growth_values(axis: str) -> list[int]:
    """The sizes along one axis of `GROWTH`."""
    return [getattr(sizes, _AXIS_FIELDS[axis]) for sizes in GROWTH[axis]]


def costs(repeats: int) -> Iterator[Comparison]:
    """Compile time, import time and peak memory."""
    compiling: dict[str, Work] = {
        ALL: Ours("auto", all_devices=True).compiling(NOTES),
        ONE: Ours("auto", all_devices=False).compiling(NOTES),
        FLAX: FlaxRNN().compiling(NOTES),
    }
    yield compare_works(
        "compiling a training step",
        str(NOTES),
        compiling,
        ratios=((ONE, FLAX),),
        rounds=repeats,
        unit="s",
    )
    yield Comparison(
        "import flax_lstm after flax.linen",
        "a new process",
        "s",
        {ALL: import_seconds(repeats)},
    )
    if can_measure():
        yield from _memory()


def _memory() -> Iterator[Comparison]:
    remat = "ours, one device, remat"
    entries = contenders() | {remat: Ours("auto", all_devices=False, remat=True)}
    for sizes in (NOTES, _PIXELS):
        values = {
            name: in_process(peak_bytes, entry, sizes) / 2**20
            for name, entry in entries.items()
        }
        ratios = ((ONE, FLAX), (ONE, TORCH), (remat, TORCH))
        yield Comparison("peak memory of training", str(sizes), "MiB", values, ratios)


def _compare(section, work, entries, kind, sizes, seconds, ratios) -> Comparison:
    works, missing = {}, {}
    for name, entry in entries.items():
        make: Callable[[Sizes], Work] = getattr(entry, kind)
        if name != TORCH_COMPILED:
            works[name] = make(sizes)
            continue
        try:  # It compiles in its first call, where there is a compiler.
            works[name] = make(sizes)
            works[name]()
        except Exception as error:
            works.pop(name, None)
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    units = {
        name: entry.steps_a_call
        for name, entry in entries.items()
        if kind == "training"
    }
    result = compare_works(
        section, work, works, seconds, ratios, missing=missing, units=units
    )
    jax.clear_caches()
    return result


def compare_works(
    section: str,
    work: str,
    works: dict[str, Work],
    seconds: float = 0.0,
    ratios: tuple[tuple[str, str], ...] = (),
    rounds: int = 5,
    unit: str = "ms",
    missing: dict[str, str] | None = None,
    units: dict[str, int] | None = None,
) -> Comparison:
    """Times the works in turn; `units` is how many units a call does, 1 unsaid."""
    timings = in_turn(works, seconds, rounds, units)
    scale = {"s": 1, "ms": 1000}[unit]
    return Comparison(
        section,
        work,
        unit,
        {name: timing.median * scale for name, timing in timings.items()},
        tuple(ratios),
        timings,
        missing or {},
    )
