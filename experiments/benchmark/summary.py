"""What a run found, as the tables of `experiments/BENCHMARK.md` and the README.

A column whose contenders were not there is left out, as a row is whose part was not
run.
"""

from collections.abc import Callable
from typing import NamedTuple

from experiments.benchmark import sections
from experiments.benchmark.contenders import (
    ALL,
    CHUNK,
    CUDNN,
    FLAX,
    FLAX_KEPT,
    FUSED,
    KERNEL,
    TORCH,
    TORCH_COMPILED,
    TORCH_KEPT,
)
from experiments.benchmark.report import Comparison, Report
from experiments.benchmark.sizes import NOTES


class _Row(NamedTuple):
    """A comparison, and which of its contenders is "ours" in the row."""

    label: str
    section: str
    work: str
    ours: str = ALL


_Cell = Callable[[Comparison, str], str]
_Column = tuple[str, _Cell]


def _time(name: str | None = None) -> _Cell:
    """Of a contender; None is "ours"."""

    def cell(comparison: Comparison, ours: str) -> str:
        value = comparison.values.get(name or ours)
        return "" if value is None else f"{value:.3g}"

    return cell


def _ratio(other: str, mine: str | None = None) -> _Cell:
    """Of two contenders; "ours" is the first where no other is named."""

    def cell(comparison: Comparison, ours: str) -> str:
        ratio = comparison.ratio(mine or ours, other)
        return "" if ratio is None else f"{ratio:.2f}"

    return cell


_STEP_10, _STEP_1 = "training step, 10 a call", "training step, one a call"
_INFERENCE = [
    (f"inference, B {batch}", str(NOTES._replace(batch=batch)))
    for batch in sections.INFERENCE_BATCHES
]
_ON_GPU: list[_Column] = [
    ("by cuDNN / torch", _ratio(TORCH, CUDNN)),
    ("by the kernel / torch", _ratio(TORCH, KERNEL)),
]

_OURS_AND_TORCH: list[_Column] = [
    ("ours", _time()),
    ("torch", _time(TORCH)),
    ("ratio", _ratio(TORCH)),
]
_FLAX: list[_Column] = [("Flax's RNN", _time(FLAX)), ("ratio", _ratio(FLAX))]

_SHORT: list[_Column] = [
    *_OURS_AND_TORCH,
    *_FLAX,
    ("torch, memory kept", _time(TORCH_KEPT)),
    ("ratio", _ratio(TORCH_KEPT)),
]
_ALONE: list[_Column] = [
    *_SHORT,
    ("ours / Flax's, memory kept", _ratio(FLAX_KEPT)),
    ("fused / torch", _ratio(TORCH, FUSED)),
    *_ON_GPU,
]
_ALONE_ROWS = [
    _Row(_STEP_10, sections.TRAINING_ALONE, str(NOTES), CHUNK),
    _Row(_STEP_1, sections.TRAINING_ALONE, str(NOTES)),
    _Row("training step, one core each", sections.TRAINING_ONE_CORE, str(NOTES)),
    *(_Row(label, sections.INFERENCE_ALONE, work) for label, work in _INFERENCE),
    _Row("epoch of 60,000 with test pass, s", sections.EPOCH, sections.EPOCH_WORK),
]
_TOGETHER: list[_Column] = [
    *_OURS_AND_TORCH,
    ("torch.compile", _time(TORCH_COMPILED)),
    ("ratio", _ratio(TORCH_COMPILED)),
    *_FLAX,
    ("fused / torch", _ratio(TORCH, FUSED)),
    *_ON_GPU,
]
_TOGETHER_ROWS = [
    _Row(_STEP_10, sections.TRAINING, str(NOTES), CHUNK),
    _Row(_STEP_1, sections.TRAINING, str(NOTES)),
    *(_Row(label, sections.INFERENCE, work) for label, work in _INFERENCE),
]
_GRID: list[_Column] = [
    ("/ torch", _ratio(TORCH)),
    ("/ Flax", _ratio(FLAX)),
    ("/ torch, memory kept", _ratio(TORCH_KEPT)),
    ("fused / torch", _ratio(TORCH, FUSED)),
    *_ON_GPU,
]


def short_table(report: Report) -> str:
    """The README's: ours, torch and Flax's RNN, a process each."""
    return _rows_table(report, "a process each, ms", _SHORT, _ALONE_ROWS)


def tables(report: Report) -> list[str]:
    """A process each, all in one, and the grid; those of which there is something."""
    found = [
        _rows_table(report, "a process each, ms", _ALONE, _ALONE_ROWS),
        _rows_table(report, "all in one process, ms", _TOGETHER, _TOGETHER_ROWS),
        _grid_table(report),
    ]
    return [table for table in found if table]


def _rows_table(
    report: Report, title: str, columns: list[_Column], rows: list[_Row]
) -> str:
    lines = []
    for row in rows:
        comparison = report.find(row.section, row.work)
        if comparison is not None and row.ours in comparison.values:
            cells = [cell(comparison, row.ours) for _, cell in columns]
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
            cells = [
                cell(comparison, ALL) if (comparison := found[kind]) else ""
                for kind, (_, cell) in columns
            ]
            lines.append([sizes.removesuffix(f", L {NOTES.layers}"), *cells])
    head = [f"{kind}: {heading}" for kind, (heading, _) in columns]
    return _table(["grid, a process each, ratios", *head], lines)


def _table(head: list[str], lines: list[list[str]]) -> str:
    """In Markdown, without columns that are empty; "" without lines."""
    if not lines:
        return ""
    kept = [0, *(k for k in range(1, len(head)) if any(line[k] for line in lines))]
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row[k] for k in kept) + " |" for row in rows)
