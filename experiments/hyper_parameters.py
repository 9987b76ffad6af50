"""What determines a run: recorded in its checkpoints, compared when it continues."""

import dataclasses
from typing import Any

from experiments.allocator import GATES, step_bytes
from experiments.data.dataset import Dataset
from experiments.model_input import ModelInput
from experiments.recipes import RECIPES, Recipe
from flax_lstm import CLASSIFIERS, SequenceClassifier

# MNIST's; needed before the dataset is loaded.
_IMAGE_SHAPE = (28, 28)
_FROM_RECIPE = ("batch_size", "learning_rate", "dropout")


@dataclasses.dataclass(frozen=True)
class HyperParameters:
    """The defaults are the study notes' run.

    `num_epochs` is None where the step size is constant: such a run with more epochs
    is the same run, continued.
    """

    recipe: str = "notes"
    sequence: str = "rows"
    cell: str = "lstm"
    pooling: str = "last"
    hidden_size: int = 128
    num_layers: int = 2
    bidirectional: bool = False
    dropout: float = 0.0
    batch_size: int = 100
    learning_rate: float = 1e-3
    num_epochs: int | None = None
    seed: int = 0
    validate: bool = False

    @classmethod
    def of_recipe(cls, name: str, num_epochs: int, **options: Any) -> "HyperParameters":
        """Options that are None are taken from the recipe called `name`."""
        recipe = RECIPES[name]
        for option in _FROM_RECIPE:
            if options[option] is None:
                options[option] = getattr(recipe, option)
        fixed = num_epochs if recipe.one_cycle else None
        return cls(recipe=name, num_epochs=fixed, **options)

    def workdir_name(self, dataset: str) -> str:
        """Folder name that tells runs apart: `mnist-l2-h128-b100-lr0.001-seed0`."""
        parts = [dataset]
        parts += [self.recipe] if self.recipe != "notes" else []
        parts += [self.sequence] if self.sequence != "rows" else []
        parts += [self.cell] if self.cell != "lstm" else []
        parts += [self.pooling] if self.pooling != "last" else []
        parts += [f"l{self.num_layers}", f"h{self.hidden_size}"]
        parts += ["bidirectional"] if self.bidirectional else []
        parts += [f"dropout{self.dropout:g}"] if self.dropout else []
        parts += [f"b{self.batch_size}", f"lr{self.learning_rate:g}"]
        parts += [f"e{self.num_epochs}"] if self.num_epochs else []
        parts += [f"seed{self.seed}"]
        parts += ["validate"] if self.validate else []
        return "-".join(parts)

    def differences(self, recorded: dict[str, Any]) -> list[str]:
        """One entry for each flag whose value is not the recorded one.

        Recipes that don't fix the number of epochs have none to compare.
        """
        return [
            f"--{name}: the checkpoint has {recorded.get(name)!r}, this run {value!r}"
            for name, value in dataclasses.asdict(self).items()
            if recorded.get(name) != value
            and not (name == "num_epochs" and None in (value, recorded.get(name)))
        ]

    @property
    def step_bytes(self) -> int:
        """About how many bytes a training step holds in one process without `remat`."""
        steps, _ = ModelInput(white=1, sequence=self.sequence).shape(*_IMAGE_SHAPE)
        directions = 2 if self.bidirectional else 1
        units = directions * self.hidden_size
        return step_bytes(self.batch_size, steps, units, self.num_layers)

    @property
    def weights_bytes(self) -> int:
        """The least that the stack's weights take in training, of any batch size.

        With each weight go its gradient and Adam's two means, in float32.
        """
        _, input_size = ModelInput(1, self.sequence).shape(*_IMAGE_SHAPE)
        directions = 2 if self.bidirectional else 1
        read = [input_size, directions * self.hidden_size]
        per_unit = sum(
            layers * (size + self.hidden_size)
            for layers, size in zip((1, self.num_layers - 1), read, strict=True)
        )
        weights = directions * GATES[self.cell] * self.hidden_size * per_unit
        return 4 * 4 * weights

    @property
    def training_recipe(self) -> Recipe:
        return RECIPES[self.recipe]

    def model_input(self, dataset: Dataset) -> ModelInput:
        return ModelInput(dataset.white, self.sequence)

    def model(self, dataset: Dataset) -> SequenceClassifier:
        _, input_size = self.model_input(dataset).shape(*dataset.image_shape)
        return CLASSIFIERS[self.cell](
            num_classes=dataset.num_classes,
            input_size=input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            pooling=self.pooling,
            batch_first=True,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
            # Hundreds of steps: memory that grows with their square root.
            remat=self.sequence != "rows",
        )
