"""The results of one run: recorded, written, and printed as tables.

Ratios are taken between the contenders of one comparison, which were timed in turn;
there is no way to put the results of two runs side by side.
"""

import dataclasses
import json
from typing import Any

from experiments.benchmark.timing import Timing
from experiments.errors import RunError
from experiments.whole_file import write_whole

FORMAT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One piece of work and what each contender took for it, in `unit`.

    `values` are medians. `timings` has what they are medians of where they are times.
    `ratios` says which contenders to divide: (ours, the other).
    """

    section: str
    work: str
    unit: str
    values: dict[str, float]
    ratios: tuple[tuple[str, str], ...] = ()
    timings: dict[str, Timing] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)

    def ratio(self, ours: str, other: str) -> float | None:
        """Ours over the other's, or None where one of them was not measured.

        For times, the median of the rounds' ratios.
        """
        if ours not in self.values or other not in self.values:
            return None
        if ours in self.timings and other in self.timings:
            return self.timings[ours].over(self.timings[other])
        return self.values[ours] / self.values[other]


@dataclasses.dataclass
class Report:
    """Everything that one run of the benchmark found."""

    environment: dict[str, Any]
    comparisons: list[Comparison] = dataclasses.field(default_factory=list)

    def add(self, comparison: Comparison) -> None:
        self.comparisons.append(comparison)

    @staticmethod
    def read(path: str) -> "Report":
        """What `write` wrote.

        Raises:
            RunError: it is of another version of this program.
        """
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if content.get("format_version") != FORMAT_VERSION:
            raise RunError(
                f"{path}: expected results of format {FORMAT_VERSION}, got "
                f"{content.get('format_version')}"
            )
        comparisons = []
        for row in content["comparisons"]:
            pairs = (tuple(pair.split(" / ", 1)) for pair in row["ratios"])
            timings = {
                k: Timing(tuple(v["samples"])) for k, v in row["timings"].items()
            }
            read = {**row, "ratios": tuple(pairs), "timings": timings}
            comparisons.append(Comparison(**read))
        return Report(content["environment"], comparisons)

    def find(self, section: str, work: str) -> Comparison | None:
        """The comparison of that work, or None if it was not made."""
        found = [c for c in self.of_section(section) if c.work == work]
        return found[0] if found else None

    def of_section(self, section: str) -> list[Comparison]:
        return [c for c in self.comparisons if c.section == section]

    def write(self, path: str) -> None:
        """Writes the environment and the comparisons, with their ratios, as JSON."""
        comparisons = []
        for comparison in self.comparisons:
            row = dataclasses.asdict(comparison)
            row["ratios"] = {
                f"{ours} / {other}": comparison.ratio(ours, other)
                for ours, other in comparison.ratios
            }
            comparisons.append(row)
        content = {
            "format_version": FORMAT_VERSION,
            "environment": self.environment,
            "comparisons": comparisons,
        }
        # Again and again as a run goes on.
        write_whole({path: (json.dumps(content, indent=1) + "\n").encode()})


def line(comparison: Comparison) -> str:
    """The values of one comparison, for a log."""
    values = [f"{name} {_number(value)}" for name, value in comparison.values.items()]
    found = ", ".join([*values, *(f"{n} not measured" for n in comparison.missing)])
    return f"{comparison.section}, {comparison.work} ({comparison.unit}): {found}"


def table(comparisons: list[Comparison]) -> str:
    """A Markdown table: a row for each comparison, values and then ratios."""
    names = list(dict.fromkeys(n for c in comparisons for n in c.values))
    pairs = list(
        dict.fromkeys(
            pair for c in comparisons for pair in c.ratios if set(pair) <= set(names)
        )
    )
    unit = comparisons[0].unit
    head = [f"{comparisons[0].section} ({unit})", *names]
    head += [f"{ours} / {other}" for ours, other in pairs]
    rows = [
        [
            comparison.work,
            *(_number(comparison.values.get(name)) for name in names),
            *(
                _number(comparison.ratio(*pair), 2) if pair in comparison.ratios else ""
                for pair in pairs
            ),
        ]
        for comparison in comparisons
    ]
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    missing = {f"{n}: {why}" for c in comparisons for n, why in c.missing.items()}
    return "\n".join([text, *(f"Not measured, {line}" for line in sorted(missing))])


def _number(value: float | None, decimals: int | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.4g}"
