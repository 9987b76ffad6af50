"""One run of the benchmark: every section, the tables, the JSON and the picture."""

import datetime
import importlib.metadata
import os
import platform
import sys
import time

import jax

from experiments.allocator import keep_freed_memory
from experiments.benchmark import figure, scaling, sections
from experiments.benchmark.ours import has_native_loops
from experiments.benchmark.report import Comparison, Report, table
from experiments.devices import claim_cores
from experiments.errors import RunError
from flax_lstm.native.cores import usable_cores

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")


def run(quick: bool, scales: bool, output: str) -> None:
    """Runs, prints tables as they are ready, and writes `output`.json and .png.

    Raises:
        RunError: the results can't be written there.
    """
    _make_folder(output)
    # Of a GPU's memory JAX would take most at once, and leave none for the others.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    claim_cores(max(scaling.COUNTS) if scales else usable_cores())
    # Else what one contender leaves behind in the allocator is another's gain.
    keep_freed_memory()
    start = time.perf_counter()
    report = Report(environment())
    print(", ".join(f"{k} {v}" for k, v in report.environment.items()), flush=True)

    def show(comparisons):
        found = list(comparisons)
        for comparison in found:
            report.add(comparison)
        for section in dict.fromkeys(c.section for c in found):
            rows = [c for c in found if c.section == section]
            print(f"\n{table(rows)}", flush=True)

    if scales:
        show(scaling.scaling(seconds=20))
    elif quick:
        show(sections.quickly(seconds=1))
    else:
        show(sections.in_own_processes(seconds=6))
        show(sections.training_and_inference(seconds=6))
        show(sections.costs(repeats=5))
        show(sections.whole_epoch(rounds=3))
        show(sections.grid(seconds=4))
        growth: dict[str, list[Comparison]] = {}
        for axis, comparison in sections.growth(seconds=3):
            growth.setdefault(axis, []).append(comparison)
        show(comparison for rows in growth.values() for comparison in rows)
        sizes = {axis: sections.growth_values(axis) for axis in growth}
        figure.save_growth(growth, sizes, f"{output}.png")
        print(f"\nPicture: {output}.png")
    report.environment["minutes"] = round((time.perf_counter() - start) / 60, 1)
    report.write(f"{output}.json")
    print(f"\nResults: {output}.json ({report.environment['minutes']} min)")


def _make_folder(output: str) -> None:
    folder = os.path.dirname(os.path.abspath(output))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"--output: expected a path in a writable folder, got {output} ({error})"
        ) from error


def environment() -> dict[str, object]:
    """What a run's figures depend on: machine, versions, and how it was called."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": usable_cores(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "implementation": "native" if has_native_loops() else "fused",
        "precision": jax.config.values["jax_default_matmul_precision"] or "default",
        "python": platform.python_version(),
        **versions,
        "command": " ".join(["python -m experiments.benchmark", *sys.argv[1:]]),
    }


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
