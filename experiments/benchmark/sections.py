"""What is compared with what, section by section."""

import contextlib
import functools
import statistics
from collections.abc import Iterable, Iterator, Mapping

import jax

from experiments.allocator import can_keep, keep_freed_memory, keep_if_large
from experiments.benchmark import contenders, epoch, largest_product
from experiments.benchmark.child import can_pin, in_process, on_one_core, working
from experiments.benchmark.contenders import (
    FLAX,
    FLAX_CHUNKED,
    FLAX_KEPT,
    OURS,
    OURS_CHUNKED,
    OURS_CUDNN,
    OURS_CUDNN_CHUNKED,
    OURS_DEFAULT_MALLOC,
    OURS_FUSED,
    OURS_KERNEL,
    OURS_KERNEL_CHUNKED,
    OURS_ONE_DEVICE,
    OURS_SCAN,
    OURS_SCAN_CHUNKED,
    TORCH,
    TORCH_CHUNKED,
    TORCH_COMPILED,
    TORCH_TUNED,
    Contender,
)
from experiments.benchmark.flax_rnn import FlaxRNN
from experiments.benchmark.importing import import_seconds
from experiments.benchmark.memory import can_measure, peak_bytes
from experiments.benchmark.ours import Ours
from experiments.benchmark.report import Comparison
from experiments.benchmark.sizes import NOTES, Sizes
from experiments.benchmark.timing import (
    Calls,
    Timing,
    Work,
    calls_of,
    calls_of_made,
    in_turn,
)
from experiments.devices import claim_cores
from flax_lstm.native.cores import usable_cores

# On a GPU; a contender that is missing has no ratio.
_ON_GPU = (
    (OURS, OURS_SCAN),
    (OURS_CUDNN, TORCH),
    (OURS, OURS_CUDNN),
    (OURS_KERNEL, TORCH),
    (OURS_KERNEL, OURS_CUDNN),
)
RATIOS = ((OURS, TORCH), (OURS_ONE_DEVICE, FLAX), (OURS, FLAX), *_ON_GPU)
# As their users run them, and then tuned.
RATIOS_ALONE = (
    *((OURS, TORCH), (OURS, FLAX), (OURS, TORCH_TUNED), (OURS, FLAX_KEPT)),
    *((OURS_FUSED, TORCH), (OURS, OURS_FUSED)),
    *_ON_GPU,
)
_OURS_ON_GPU = (OURS_SCAN, OURS_CUDNN, OURS_KERNEL)
_IN_CHUNKS = (
    OURS_CHUNKED,
    OURS_SCAN_CHUNKED,
    OURS_CUDNN_CHUNKED,
    OURS_KERNEL_CHUNKED,
    FLAX_CHUNKED,
    TORCH_CHUNKED,
)
# How many processes each contender gets for the figures in the README: a heap that
# happens to be laid out differently has different page faults for its process's life.
_PROCESSES = 3

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
INFERENCE_BATCHES = (1, 100, 1000)
EAGER_BATCHES = INFERENCE_BATCHES[:2]
GRID_KINDS = ("training", "inference")
OTHER_CELLS = [NOTES._replace(cell=cell) for cell in ("gru", "rnn")]

# What `Comparison.section` says.
TRAINING, INFERENCE = "training step", "inference"
TRAINING_ALONE = "training step, a process each"
TRAINING_ONE_CORE = "training step, a process and one core each"
INFERENCE_ALONE = "inference, a process each"
EAGER_INFERENCE = "inference outside of jit, a process each"
EAGER_GRADIENT = "gradient outside of jit, a process each"
LARGEST_PRODUCT = "the largest product, a process each"
LARGEST_PRODUCT_ONE_CORE = "the largest product, a process and one core each"
EPOCH = "epoch and test pass, a process each"
EPOCH_WORK = f"60,000 + 10,000 rows, {NOTES}"


def quickly(seconds: float) -> Iterator[Comparison]:
    """Training and inference of the notes' sizes, the least that shows the speed."""
    yield _alone(TRAINING_ALONE, _IN_CHUNKS, "training", NOTES, seconds)
    names = (OURS, *_OURS_ON_GPU, FLAX, TORCH)
    for batch in INFERENCE_BATCHES[:2]:
        yield _inference_alone(names, batch, seconds)


def in_own_processes(seconds: float) -> Iterator[Comparison]:
    """The notes' training step and inference where each contender has a process.

    In one process they share what glibc's allocator has learned, threads and the
    number of devices. Apart, ours runs as the experiment does, and the others as
    their users run them, and once more tuned.
    """
    on_gpu = contenders.is_on_gpu()
    ours = (OURS, OURS_ONE_DEVICE, OURS_FUSED, *_OURS_ON_GPU)
    names = (*ours, FLAX, FLAX_KEPT, TORCH, TORCH_TUNED)
    processes = 1 if on_gpu else _PROCESSES
    all_names = (*_IN_CHUNKS, OURS_DEFAULT_MALLOC, *names)
    yield _alone(TRAINING_ALONE, all_names, "training", NOTES, seconds, processes)
    for batch in INFERENCE_BATCHES:
        yield _inference_alone(names, batch, seconds)
    yield _largest_product(LARGEST_PRODUCT, usable_cores())
    if can_pin() and usable_cores() > 1 and not on_gpu:
        with on_one_core():
            yield _alone(TRAINING_ONE_CORE, names, "training", NOTES, seconds)
            yield _largest_product(LARGEST_PRODUCT_ONE_CORE, 1)


def _largest_product(section: str, threads: int) -> Comparison:
    with contextlib.ExitStack() as stack:
        works = {"XLA": stack.enter_context(working(largest_product.by_xla))}
        if contenders.has_torch():
            by_torch = working(largest_product.by_torch, threads)
            works[TORCH] = stack.enter_context(by_torch)
        size = largest_product.size_here()
        return compare(section, largest_product.work_of(size), works)


def _inference_alone(names: Iterable[str], batch: int, seconds: float) -> Comparison:
    sizes = NOTES._replace(batch=batch)
    return _alone(INFERENCE_ALONE, names, "inference", sizes, seconds)


def eager(seconds: float) -> Iterator[Comparison]:
    """The notes' model called outside of `jax.jit`, as torch's is."""
    names = (OURS, OURS_FUSED, OURS_CUDNN, OURS_KERNEL, FLAX, TORCH)
    kinds = {"eager_inference": EAGER_INFERENCE, "eager_gradient": EAGER_GRADIENT}
    for kind, section in kinds.items():
        for batch in EAGER_BATCHES:
            yield _alone(section, names, kind, NOTES._replace(batch=batch), seconds)


def grid(seconds: float) -> Iterator[Comparison]:
    """Training and inference over sizes from small to large and long."""
    names = (
        OURS,
        OURS_ONE_DEVICE,
        OURS_FUSED,
        OURS_CUDNN,
        OURS_KERNEL,
        FLAX,
        FLAX_KEPT,
        TORCH,
        TORCH_TUNED,
    )
    for kind in GRID_KINDS:
        for sizes in GRID:
            yield _alone(grid_section(kind), names, kind, sizes, seconds)


def grid_section(kind: str) -> str:
    return f"grid, {kind}, a process each"


def other_cells(seconds: float) -> Iterator[Comparison]:
    """Training and inference of the notes' sizes, with GRUs and RNNs."""
    names = (OURS, FLAX, FLAX_KEPT, TORCH, TORCH_TUNED)
    for kind in GRID_KINDS:
        for sizes in OTHER_CELLS:
            yield _alone(cells_section(kind), names, kind, sizes, seconds)


def cells_section(kind: str) -> str:
    return f"other cells, {kind}, a process each"


def _alone(
    section: str,
    names: Iterable[str],
    kind: str,
    sizes: Sizes,
    seconds: float,
    processes: int = 1,
) -> Comparison:
    """Each contender in a process of its own, in turn, `processes` times over."""
    entries = contenders.alone()
    entries = {
        name: entries[name]
        for name in names
        if name in entries and contenders.serves(name, sizes)
    }
    units = _units({name: entry.contender for name, entry in entries.items()}, kind)
    chunks = [
        (ours, TORCH_CHUNKED)
        for ours in (OURS_CHUNKED, OURS_CUDNN_CHUNKED, OURS_KERNEL_CHUNKED)
    ]
    chunks += [
        (OURS_CHUNKED, other)
        for other in (FLAX_CHUNKED, TORCH_TUNED, OURS_SCAN_CHUNKED)
    ]
    plain = ((OURS_DEFAULT_MALLOC, TORCH), (OURS_DEFAULT_MALLOC, FLAX))
    ratios = (
        *chunks,
        *plain,
        *RATIOS_ALONE,
        (OURS_ONE_DEVICE, FLAX),
        (OURS_ONE_DEVICE, FLAX_KEPT),
    )
    found: list[dict[str, Timing]] = []
    missing: dict[str, str] = {}
    for _ in range(processes):
        with contextlib.ExitStack() as stack:
            works = {
                name: stack.enter_context(working(entry.work, kind, sizes))
                for name, entry in entries.items()
                if name not in missing
            }
            timings, failed = in_turn(works, seconds / processes, units=units)
            found.append(timings)
            missing |= failed
    together = {
        name: Timing(tuple(s for timings in found for s in timings[name].samples))
        for name in entries
        if name not in missing
    }
    return _comparison(section, str(sizes), together, missing, ratios)


def training_and_inference(seconds: float) -> Iterator[Comparison]:
    """The notes' training step, and inference at three batch sizes, in one process.

    With all that there is: our scan, and torch.compile where it works.
    """
    entries = contenders.in_one_process() | {OURS_SCAN: contenders.scan()}
    if not contenders.is_on_gpu():
        entries[OURS_FUSED] = contenders.fused()
    if TORCH in entries:
        entries[TORCH_COMPILED] = contenders.torch_compiled()
    ratios = (*RATIOS, (OURS_SCAN, FLAX))
    in_chunks = {
        OURS_CHUNKED: contenders.in_chunks(),
        FLAX_CHUNKED: FlaxRNN(contenders.STEPS_PER_CALL),
    }
    with_chunks = in_chunks | entries
    first = ((OURS_CHUNKED, TORCH), (OURS_CHUNKED, FLAX_CHUNKED))
    yield _here(TRAINING, with_chunks, "training", NOTES, seconds, (*first, *ratios))
    for batch in INFERENCE_BATCHES:
        sizes = NOTES._replace(batch=batch)
        yield _here(INFERENCE, entries, "inference", sizes, seconds, ratios)


def growth(seconds: float) -> Iterator[Comparison]:
    """A training step of the notes with one size at a time made larger."""
    entries = contenders.in_one_process()
    for axis, all_sizes in GROWTH.items():
        name = growth_section(axis)
        for sizes in all_sizes:
            yield _here(name, entries, "training", sizes, seconds, RATIOS)


def growth_section(axis: str) -> str:
    return f"growth with {axis}"


def growth_values(axis: str) -> list[int]:
    """The sizes along one axis of `GROWTH`."""
    return [getattr(sizes, _AXIS_FIELDS[axis]) for sizes in GROWTH[axis]]


def _here(
    section: str,
    entries: Mapping[str, Contender],
    kind: str,
    sizes: Sizes,
    seconds: float,
    ratios: tuple[tuple[str, str], ...],
) -> Comparison:
    """All contenders in this process, in turn."""
    works = {
        name: calls_of_made(functools.partial(getattr(entry, kind), sizes))
        for name, entry in entries.items()
        if contenders.serves(name, sizes)
    }
    units = _units(entries, kind)
    result = compare(section, str(sizes), works, seconds, ratios, units=units)
    jax.clear_caches()
    return result


def _units(entries: Mapping[str, Contender], kind: str) -> dict[str, int]:
    """Steps in a call of each."""
    if kind != "training":
        return {}
    return {name: entry.steps_per_call for name, entry in entries.items()}


def whole_epoch(rounds: int) -> Iterator[Comparison]:
    """An epoch of 60,000 made-up rows and a test pass over 10,000, a process each."""
    with contextlib.ExitStack() as stack:
        works = {
            name: stack.enter_context(working(_epoch_of_ours, implementation))
            for name, implementation in contenders.implementations().items()
            if name != OURS_SCAN  # For which an epoch takes too long on a GPU.
        }
        if contenders.has_torch():
            works[TORCH] = stack.enter_context(working(_epoch_of_torch, usable_cores()))
        if contenders.has_torch() and can_keep() and not contenders.is_on_gpu():
            tuned = working(_epoch_of_tuned_torch, usable_cores())
            works[TORCH_TUNED] = stack.enter_context(tuned)
        yield compare(
            EPOCH,
            EPOCH_WORK,
            works,
            ratios=((OURS, TORCH), (OURS, TORCH_TUNED), *_ON_GPU),
            rounds=rounds,
            unit="s",
        )


def _epoch_of_ours(implementation: str) -> Work:
    keep_if_large(NOTES.step_bytes)
    claim_cores()
    return epoch.our_epoch(*epoch.made_up_splits(), implementation)


def _epoch_of_torch(threads: int) -> Work:
    return epoch.torch_epoch(*epoch.made_up_splits(), threads, tuned=False)


def _epoch_of_tuned_torch(threads: int) -> Work:
    keep_freed_memory()
    return epoch.torch_epoch(*epoch.made_up_splits(), threads, tuned=True)


def costs(repeats: int) -> Iterator[Comparison]:
    """Compile time, import time and peak memory."""
    compiling = {
        OURS: Ours("auto", all_devices=True).compiling(NOTES),
        OURS_FUSED: contenders.fused().compiling(NOTES),
        FLAX: FlaxRNN().compiling(NOTES),
    }
    yield compare(
        "compiling a training step",
        str(NOTES),
        {name: calls_of(work) for name, work in compiling.items()},
        ratios=((OURS, FLAX),),
        rounds=repeats,
        unit="s",
    )
    yield Comparison(
        "import flax_lstm after flax.linen",
        "a new process",
        "s",
        {OURS: import_seconds(repeats)},
    )
    if can_measure() and not contenders.is_on_gpu():
        yield from _memory()


def _memory() -> Iterator[Comparison]:
    remat = "ours, remat"
    entries = contenders.in_one_process() | {
        OURS_FUSED: contenders.fused(),
        remat: Ours("auto", True, remat=True),
    }
    for sizes in (NOTES, _PIXELS):
        values = {name: _peak_mib(entry, sizes) for name, entry in entries.items()}
        ratios = ((OURS, FLAX), (OURS, TORCH), (remat, TORCH))
        yield Comparison("peak memory of training", str(sizes), "MiB", values, ratios)


def _peak_mib(entry: Contender, sizes: Sizes) -> float:
    """The median over processes: with malloc's placements it varies by some 20 MiB."""
    peaks = [in_process(peak_bytes, entry, sizes) for _ in range(_PROCESSES)]
    return statistics.median(peaks) / 2**20


def compare(
    section: str,
    work: str,
    works: Mapping[str, Calls],
    seconds: float = 0.0,
    ratios: tuple[tuple[str, str], ...] = (),
    rounds: int = 5,
    unit: str = "ms",
    units: Mapping[str, int] | None = None,
) -> Comparison:
    """Times the works in turn; `units` is how many a call does, by default 1."""
    timings, missing = in_turn(works, seconds, rounds, units)
    return _comparison(section, work, timings, missing, ratios, unit)


def _comparison(
    section: str,
    work: str,
    timings: dict[str, Timing],
    missing: dict[str, str],
    ratios: tuple[tuple[str, str], ...],
    unit: str = "ms",
) -> Comparison:
    scale = {"s": 1, "ms": 1000}[unit]
    ratios = tuple(pair for pair in ratios if set(pair) <= {*timings, *missing})
    return Comparison(
        section,
        work,
        unit,
        {name: timing.median * scale for name, timing in timings.items()},
        ratios,
        timings,
        missing,
    )
