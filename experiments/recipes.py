"""Ways of training: what `--recipe` stands for.

`notes` is the study notes' own and the default. The others were chosen on the last
10,000 of MNIST's training examples (`--validate`), never on its test set.
"""

import dataclasses

import optax

from experiments.augmentation import Warp

_WARM_UP = 0.3


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about training but the model.

    Attributes:
        num_epochs: epochs in all; where the step size follows a schedule, a run of
            another number is another run.
        batch_size: examples per step.
        learning_rate: Adam's step size, the largest one where it follows a schedule.
        dropout: between layers.
        one_cycle: whether the step size rises and falls (Smith & Topin 2017,
            https://arxiv.org/abs/1708.07120).
        clip_norm: largest norm of a step's gradient, or None.
        average_decay: decay of the exponential moving average of the weights that is
            tested and saved for predicting; None to test the weights themselves.
        warp: random changes of the training images, or None.
    """

    num_epochs: int = 30
    batch_size: int = 100
    learning_rate: float = 1e-3
    dropout: float = 0.0
    one_cycle: bool = False
    clip_norm: float | None = None
    average_decay: float | None = None
    warp: Warp | None = None

    def step_size(self, learning_rate: float, steps: int) -> float | optax.Schedule:
        """Adam's step size over a run of `steps` steps."""
        if not self.one_cycle:
            return learning_rate
        return optax.cosine_onecycle_schedule(steps, learning_rate, _WARM_UP)


RECIPES = {
    "notes": Recipe(),
    "fast": Recipe(
        num_epochs=6,
        learning_rate=8e-3,
        one_cycle=True,
        clip_norm=1.0,
        average_decay=0.998,
        warp=Warp(shift=0.036, rotation=6, scale=0.05, shear=0.1),
    ),
    "best": Recipe(
        num_epochs=30,
        learning_rate=4e-3,
        one_cycle=True,
        clip_norm=1.0,
        average_decay=0.998,
        warp=Warp(shift=0.06, rotation=15, scale=0.15, shear=0.25, elastic=0.025),
    ),
}
