"""What a run found, as the tables of `experiments/BENCHMARK.md` and the README.

A column is left out if its contenders were missing, a row if its part was not run.
"""

from collections.abc import Callable
from typing import NamedTuple

from experiments.benchmark import epoch, largest_product, sections
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
    TORCH,
    TORCH_CHUNKED,
    TORCH_COMPILED,
    TORCH_TUNED,
)
from experiments.benchmark.report import Comparison, Report
from experiments.benchmark.sizes import NOTES


class _Row(NamedTuple):
    """A comparison, and which contenders stand for `OURS`, `TORCH`, … in the row.

    The least time for `flop` is computed from the machine's speed in section `limit`.
    """

    label: str
    section: str
    work: str
    flop: int = 0
    ours: str = OURS
    torch: str = TORCH
    flax: str = FLAX
    cudnn: str = OURS_CUDNN
    kernel: str = OURS_KERNEL
    limit: str = sections.LARGEST_PRODUCT

    def who(self, name: str) -> str:
        parts = {OURS: self.ours, TORCH: self.torch, FLAX: self.flax}
        parts |= {OURS_CUDNN: self.cudnn, OURS_KERNEL: self.kernel}
        return parts.get(name, name)


_Cell = Callable[[Report, Comparison, _Row], str]
_Column = tuple[str, _Cell]


def _time(name: str) -> _Cell:
    def cell(report: Report, comparison: Comparison, row: _Row) -> str:
        value = comparison.values.get(row.who(name))
        if value is None:
            return ""
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"

    return cell


def _ratio(other: str, mine: str = OURS, spread: bool = False) -> _Cell:
    """For two contenders; with `spread`, also the quartiles of the rounds' ratios."""

    def cell(report: Report, comparison: Comparison, row: _Row) -> str:
        ratio = comparison.ratio(row.who(mine), row.who(other))
        if ratio is None:
            return ""
        if not spread:
            return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"
        of_mine, of_other = (comparison.timings[row.who(n)] for n in (mine, other))
        first, third = of_mine.quartiles_over(of_other)
        return f"{ratio:.2f} ({first:.2f} to {third:.2f})"

    return cell


def _limit(report: Report, comparison: Comparison, row: _Row) -> str:
    """What the row's arithmetic takes at the speed of the largest product."""
    for size in (largest_product.CPU_SIZE, largest_product.GPU_SIZE):
        product = report.find(row.limit, largest_product.work_of(size))
        if product and row.flop:
            share = row.flop / largest_product.flop(size)
            units_per_second = 1 if product.unit == comparison.unit else 1000
            return f"{share * min(product.values.values()) / units_per_second:.3g}"
    return ""


_STEP_10, _STEP_1 = "training step, 10 a call", "training step, one a call"
_STEP_PLAIN = "the same, malloc as it is"
_INFERENCE = [
    (f"inference, B {sizes.batch}", str(sizes), sizes.flop("inference"))
    for sizes in (NOTES._replace(batch=b) for b in sections.INFERENCE_BATCHES)
]
_FLOP = NOTES.flop("training")
_FLOP_EPOCH = (
    epoch.TRAIN_EXAMPLES * _FLOP + epoch.TEST_EXAMPLES * NOTES.flop("inference")
) // NOTES.batch
_ON_GPU: list[_Column] = [
    ("by cuDNN / torch", _ratio(TORCH, OURS_CUDNN)),
    ("by the kernel / torch", _ratio(TORCH, OURS_KERNEL)),
]

_OURS: _Column = ("ours", _time(OURS))


def _beside(heading: str, name: str, spread: bool = False) -> list[_Column]:
    """Somebody's time, and ours over it."""
    return [(heading, _time(name)), ("ratio", _ratio(name, spread=spread))]


def _beside_all(spread: bool) -> list[_Column]:
    return [
        _OURS,
        *_beside("torch", TORCH, spread),
        *_beside("torch, tuned", TORCH_TUNED, spread),
        *_beside("Flax's RNN", FLAX, spread),
    ]


_SHORT = [*_beside_all(spread=False), ("limit", _limit)]
_ALONE: list[_Column] = [
    *_beside_all(spread=True),
    ("ours / Flax's, memory kept", _ratio(FLAX_KEPT)),
    ("fused / torch", _ratio(TORCH, OURS_FUSED)),
    *_ON_GPU,
    ("limit", _limit),
]
_STEP = (sections.TRAINING_ALONE, str(NOTES), _FLOP)
_ALONE_ROWS = [
    _Row(_STEP_1, *_STEP),
    _Row(_STEP_PLAIN, *_STEP, ours=OURS_DEFAULT_MALLOC),
    _Row(
        _STEP_10,
        *_STEP,
        ours=OURS_CHUNKED,
        torch=TORCH_CHUNKED,
        flax=FLAX_CHUNKED,
        cudnn=OURS_CUDNN_CHUNKED,
        kernel=OURS_KERNEL_CHUNKED,
    ),
    _Row(
        "training step, one core each",
        *(sections.TRAINING_ONE_CORE, str(NOTES), _FLOP),
        limit=sections.LARGEST_PRODUCT_ONE_CORE,
    ),
    *(
        _Row(label, sections.INFERENCE_ALONE, work, flop)
        for label, work, flop in _INFERENCE
    ),
    _Row(
        "epoch of 60,000 with test pass, s",
        *(sections.EPOCH, sections.EPOCH_WORK, _FLOP_EPOCH),
    ),
]
_TOGETHER: list[_Column] = [
    _OURS,
    *_beside("torch", TORCH),
    *_beside("torch.compile", TORCH_COMPILED),
    *_beside("Flax's RNN", FLAX),
    ("fused / torch", _ratio(TORCH, OURS_FUSED)),
    *_ON_GPU,
]
_TOGETHER_ROWS = [
    _Row(_STEP_1, sections.TRAINING, str(NOTES)),
    _Row(_STEP_10, sections.TRAINING, str(NOTES), ours=OURS_CHUNKED, flax=FLAX_CHUNKED),
    *(_Row(label, sections.INFERENCE, work) for label, work, _ in _INFERENCE),
]
_EAGER: list[_Column] = [
    *(_OURS, ("fused", _time(OURS_FUSED))),
    *_beside("torch", TORCH),
    *_beside("Flax's RNN", FLAX),
    ("fused / torch", _ratio(TORCH, OURS_FUSED)),
    *_ON_GPU,
]
_EAGER_ROWS = [
    _Row(f"{label}, B {batch}", section, str(NOTES._replace(batch=batch)))
    for label, section in (
        ("inference", sections.EAGER_INFERENCE),
        ("gradient", sections.EAGER_GRADIENT),
    )
    for batch in sections.EAGER_BATCHES
]
_GRID: list[_Column] = [
    ("/ torch", _ratio(TORCH)),
    ("/ Flax", _ratio(FLAX)),
    ("/ torch, tuned", _ratio(TORCH_TUNED)),
    ("fused / torch", _ratio(TORCH, OURS_FUSED)),
    *_ON_GPU,
]


_CELLS: list[_Column] = [
    *_beside_all(spread=False),
    ("ours / Flax's, memory kept", _ratio(FLAX_KEPT)),
]
_CELLS_ROWS = [
    _Row(
        f"{sizes.cell.upper()}, {kind}, B {sizes.batch}",
        *(sections.cells_section(kind), str(sizes)),
    )
    for sizes in sections.OTHER_CELLS
    for kind in sections.GRID_KINDS
]


def short_table(report: Report) -> str:
    """The README's: ours, torch and Flax's RNN, a process each."""
    return _rows_table(report, "a process each, ms", _SHORT, _ALONE_ROWS)


def tables(report: Report) -> list[str]:
    """All tables whose parts were measured."""
    found = [
        _rows_table(report, "a process each, ms", _ALONE, _ALONE_ROWS),
        _rows_table(report, "all in one process, ms", _TOGETHER, _TOGETHER_ROWS),
        _rows_table(report, "outside of jit, a process each, ms", _EAGER, _EAGER_ROWS),
        _grid_table(report),
        _rows_table(report, "other cells, a process each, ms", _CELLS, _CELLS_ROWS),
    ]
    return [table for table in found if table]


def _rows_table(
    report: Report, title: str, columns: list[_Column], rows: list[_Row]
) -> str:
    lines = []
    for row in rows:
        comparison = report.find(row.section, row.work)
        if comparison is not None and row.ours in comparison.values:
            cells = [cell(report, comparison, row) for _, cell in columns]
            lines.append([row.label, *cells])
    return _table([title, *(heading for heading, _ in columns)], lines)


def _grid_table(report: Report) -> str:
    columns = [(kind, column) for kind in sections.GRID_KINDS for column in _GRID]
    lines = []
    for sizes in map(str, sections.GRID):
        found = {
            kind: report.find(sections.grid_section(kind), sizes)
            for kind in sections.GRID_KINDS
        }
        if any(found.values()):
            label = sizes.removesuffix(f", L {NOTES.layers}")
            cells = [
                cell(report, comparison, _Row(label, comparison.section, sizes))
                if (comparison := found[kind])
                else ""
                for kind, (_, cell) in columns
            ]
            lines.append([label, *cells])
    head = [f"{kind}: {heading}" for kind, (heading, _) in columns]
    return _table(["grid, a process each, ratios", *head], lines)


def _table(head: list[str], lines: list[list[str]]) -> str:
    """In Markdown, without columns that are empty; "" without lines."""
    if not lines:
        return ""
    kept = [0, *(k for k in range(1, len(head)) if any(line[k] for line in lines))]
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row[k] for k in kept) + " |" for row in rows)
