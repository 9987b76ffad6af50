"""What `python -m experiments.gradient_flow` does: measures, trains, measures again."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.errors import naming
from experiments.gradient_flow import figure, measure, recall
from experiments.gradient_flow.networks import (
    POOLED,
    SCALED,
    TRAINED,
    Network,
    drawn,
)
from experiments.gradient_flow.report import table
from experiments.whole_file import require_files, require_writable, write_whole

Flow = Callable[[Network, Any, jax.Array], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """`inputs` sequences of `steps` are measured; training takes `updates` steps."""

    steps: int = 100
    inputs: int = 8
    updates: int = 800


QUICK = Sizes(steps=10, inputs=2, updates=20)


def run(output: str, sizes: Sizes, seed: int) -> None:
    """Writes `output`.json and three pictures beside it.

    Raises:
        RunError: they can't be written.
    """
    paths = [f"{output}.json", *figure.picture_paths(output)]
    with naming("--output"):
        require_files(output)  # A folder, or a device, was meant for something else.
        require_writable(*paths)  # Before the minutes of work, not after them.
    x, _ = recall.examples(jax.random.key(seed), sizes.inputs, sizes.steps)
    results = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "seed": seed,
        **dataclasses.asdict(sizes),
        "first_weights": _first_weights(x, seed),
        "training": {
            name: _before_and_after(name, network, _of_output, x, sizes, seed)
            for name, network in TRAINED.items()
        },
        "pooling": {
            name: _before_and_after(name, network, _of_logits, x, sizes, seed)
            for name, network in POOLED.items()
        },
    }
    with naming("--output"):
        write_whole({paths[0]: (json.dumps(results) + "\n").encode()})
        pictures = figure.save_pictures(results, output)
    print(f"\n{table(results)}\n")
    print("\n".join([f"Results: {paths[0]}", *(f"Picture: {p}" for p in pictures)]))


def _first_weights(x: jax.Array, seed: int) -> dict[str, dict[str, list[float]]]:
    """‖∂ output_T / ∂ x_t‖ for each cell, by the scale of its weights."""

    def flows(cell, scales):
        params = drawn(cell.stack, seed)
        for scale, first in scales.items():
            changed = first.of(params, seed)
            yield scale, _digits(measure.of_last_output(cell.stack, changed, x))

    return {name: dict(flows(*scaled)) for name, scaled in SCALED.items()}


def _before_and_after(
    name: str, network: Network, flow: Flow, x: jax.Array, sizes: Sizes, seed: int
) -> dict[str, Any]:
    """The `flow` of a network before it is trained to recall, and after."""
    first = network.first_params(seed)
    trained = recall.train(network.model, first, sizes.steps, sizes.updates, seed + 1)
    print(f"{name}: accuracy {trained.accuracy:.1%}", flush=True)
    return {
        "before": _digits(flow(network, first, x)),
        "after": _digits(flow(network, trained.params, x)),
        "accuracy": trained.accuracy,
    }


def _of_output(network: Network, params: Any, x: jax.Array) -> np.ndarray:
    return measure.of_last_output(network.cell.stack, params[network.model.cell], x)


def _of_logits(network: Network, params: Any, x: jax.Array) -> np.ndarray:
    return measure.of_logits(network.model, params, x)


def _digits(values: np.ndarray) -> list[float]:
    """Four of them are enough for a curve, and for the file."""
    return [float(f"{value:.3e}") for value in values]
