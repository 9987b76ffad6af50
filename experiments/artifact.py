"""A trained classifier as one exported function that needs neither code nor flags.

The bytes are `jax.export`'s: StableHLO with the parameters inside, in a flatbuffer.
Nothing in them is Python, and nothing is unpickled to load them.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp

from experiments.data import choose
from experiments.restored import RestoredClassifier
from experiments.whole_file import write_whole

PLATFORMS = ("cpu", "cuda")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """`content` for `jax.export.deserialize`, and what its user has to know."""

    content: bytes
    description: dict[str, Any]

    def write(self, path: str) -> None:
        """Writes the artifact to `path`, its description to `path` plus `.json`.

        Raises:
            RunError: one of them can't be written; what was there is left alone.
        """
        described = json.dumps(self.description, indent=2) + "\n"
        write_whole({path: self.content, f"{path}.json": described.encode()})


def export_classifier(classifier: RestoredClassifier) -> Artifact:
    """`classifier` as a function of raw images, as datasets store them.

    Its input is uint8 (b, rows, columns) for any b from 1 on, its output the logits,
    float32 (b, num_classes): the division by white and the order in which pixels are
    read are part of it.
    """
    side, white = choose.side_and_white(classifier.dataset)

    def classify(images):
        inputs = classifier.model_input.of_pixels(images)
        return classifier.model.apply(classifier.variables, inputs)

    shape = jax.export.symbolic_shape(f"b, {side}, {side}")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    exported = jax.export.export(jax.jit(classify), platforms=PLATFORMS)(images)
    (logits,) = exported.out_avals
    description = {
        "input": f"{images.dtype} {_named(images)}: b images (1 or more), "
        f"{side} rows of {side} pixels, from 0 (paper) to {white} (full ink)",
        "output": f"{logits.dtype} {_named(logits)}: logits; their softmax is the "
        f"probability of each class, their argmax the prediction",
        "platforms": list(exported.platforms),
        "dataset": classifier.dataset,
        "epoch": classifier.epoch,
        "step": classifier.step,
        "exported_by_jax": jax.__version__,
    }
    return Artifact(bytes(exported.serialize()), description)


def _named(array: Any) -> str:
    return f"({', '.join(map(str, array.shape))})"
