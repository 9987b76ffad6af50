"""One run of the benchmark: every section, the tables, the JSON and the picture."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import jax

from experiments.allocator import keep_freed_memory
from experiments.benchmark import figure, scaling, sections, summary
from experiments.benchmark.ours import has_native_loops
from experiments.benchmark.report import Comparison, Report, line, table
from experiments.devices import claim_cores
from experiments.errors import RunError, naming
from experiments.whole_file import require_files, require_writable
from flax_lstm.native.cores import usable_cores

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
# XLA's and torch's, where they are the packages'.
_CUDNN = tuple(f"nvidia-cudnn-cu{version}" for version in (12, 13))
# Environment variables that change what is timed, by their prefixes.
_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "OMP_", "MKL_", "XLA_FLAGS", "JAX_")

PARTS: dict[str, Callable[[], Iterator[Comparison]]] = {
    "processes": lambda: sections.in_own_processes(seconds=6),
    "one_process": lambda: sections.training_and_inference(seconds=6),
    "eager": lambda: sections.eager(seconds=6),
    "costs": lambda: sections.costs(repeats=5),
    "epoch": lambda: sections.whole_epoch(rounds=3),
    "grid": lambda: sections.grid(seconds=4),
    "cells": lambda: sections.other_cells(seconds=6),
    "growth": lambda: sections.growth(seconds=3),
}


def run(parts: Iterable[str], output: str) -> None:
    """Runs those `PARTS`, and prints the tables of each as it is done.

    `output`.json is there from the first comparison on, so that a run that ends early
    leaves what it found; the part `growth` draws `output`.png, too.

    Raises:
        RunError: there is no such part, or the results can't be written there.
    """
    parts = tuple(dict.fromkeys(parts))
    if not parts:
        raise RunError(f"--parts: expected some of {', '.join(PARTS)}, got none")
    for name in parts:
        if name not in PARTS:
            raise RunError(
                f"--parts: expected some of {', '.join(PARTS)}, got {name!r}"
            )
    report = _measure([PARTS[name] for name in parts], output, usable_cores())
    for summed_up in summary.tables(report):
        print(f"\n{summed_up}")
    if "growth" in parts:
        figure.save_growth(
            {
                axis: report.of_section(sections.growth_section(axis))
                for axis in sections.GROWTH
            },
            {axis: sections.growth_values(axis) for axis in sections.GROWTH},
            f"{output}.png",
        )
        print(f"Picture: {output}.png")


def run_quick(output: str) -> None:
    """The notes' training step and inference only."""
    _measure([lambda: sections.quickly(seconds=1)], output, usable_cores())


def run_scaling(output: str) -> None:
    """How the training step scales with the number of devices."""
    _measure([lambda: scaling.scaling(seconds=20)], output, max(scaling.COUNTS))


def _measure(
    parts: list[Callable[[], Iterator[Comparison]]], output: str, num_devices: int
) -> Report:
    with naming("--output"):
        require_files(output)  # A folder, or a device, was meant for something else.
        require_writable(f"{output}.json", f"{output}.png")
    # JAX would preallocate most of a GPU's memory, and leave none for the others.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    claim_cores(num_devices)
    # Else what one contender leaves behind in the allocator is another's gain.
    keep_freed_memory()
    start = time.perf_counter()
    report = Report(environment())
    print(", ".join(f"{k} {v}" for k, v in report.environment.items()), flush=True)
    for part in parts:
        found = []
        for comparison in part():
            found.append(comparison)
            report.add(comparison)
            minutes = (time.perf_counter() - start) / 60
            report.environment["minutes"] = round(minutes, 1)
            report.write(f"{output}.json")
            print(line(comparison), flush=True)
        for section in dict.fromkeys(c.section for c in found):
            rows = [c for c in found if c.section == section]
            print(f"\n{table(rows)}", flush=True)
    print(f"\nResults: {output}.json ({report.environment['minutes']} min)")
    return report


def environment() -> dict[str, object]:
    """What a run's figures depend on: machine, versions, and how it was called."""
    versions = {}
    for package in (*_PACKAGES, *_CUDNN):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package in _PACKAGES:
                versions[package] = "not installed"
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": usable_cores(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "implementation": "native" if has_native_loops() else "fused",
        "precision": jax.config.values["jax_default_matmul_precision"] or "default",
        "python": platform.python_version(),
        **versions,
        "settings": " ".join(
            f"{name}={value}"
            for name, value in sorted(os.environ.items())
            if name.startswith(_SETTINGS)
        )
        or "none",
        "command": " ".join(["python -m experiments.benchmark", *sys.argv[1:]]),
    }


def _commit() -> str:
    """The commit of this checkout; "unknown" if it is not one, or there is no git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    folder = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.decode().strip()


def _processor() -> str:
    """Its name, and on x86 its family and widest vectors, which a name may hide."""
    found: dict[str, str] = {}
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                found.setdefault(name.strip(), value.strip())
    if "model name" not in found:
        return platform.processor() or platform.machine()
    parts = [found["model name"]]
    if "cpu family" in found:
        parts.append(f"family {found['cpu family']} model {found.get('model', '?')}")
    has = found.get("flags", "").split()
    widest = next((v for v in ("avx512f", "avx2", "avx") if v in has), None)
    return " ".join([*parts, *([widest] if widest else [])])
