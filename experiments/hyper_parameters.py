"""What fixes a run: recorded in its checkpoints, compared when it continues."""

import dataclasses
from typing import Any

from experiments.data.dataset import Dataset
from flax_lstm import LSTMClassifier


@dataclasses.dataclass(frozen=True)
class HyperParameters:
    """The defaults are the study notes' run.

    The number of epochs is not among them: a run with more epochs is the same run,
    continued.
    """

    hidden_size: int = 128
    num_layers: int = 2
    bidirectional: bool = False
    dropout: float = 0.0
    batch_size: int = 100
    learning_rate: float = 1e-3
    seed: int = 0

    def workdir_name(self, dataset: str) -> str:
        """Folder name that tells runs apart: `mnist-l2-h128-b100-lr0.001-seed0`."""
        parts = [dataset, f"l{self.num_layers}", f"h{self.hidden_size}"]
        parts += ["bidirectional"] if self.bidirectional else []
        parts += [f"dropout{self.dropout:g}"] if self.dropout else []
        parts += [
            f"b{self.batch_size}",
            f"lr{self.learning_rate:g}",
            f"seed{self.seed}",
        ]
        return "-".join(parts)

    def differences(self, recorded: dict[str, Any]) -> list[str]:
        """One entry for each flag whose value is not the recorded one."""
        return [
            f"--{name}: the checkpoint has {recorded.get(name)!r}, this run {value!r}"
            for name, value in dataclasses.asdict(self).items()
            if recorded.get(name) != value
        ]

    def model(self, dataset: Dataset) -> LSTMClassifier:
        return LSTMClassifier(
            num_classes=dataset.num_classes,
            input_size=dataset.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            batch_first=True,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
        )
