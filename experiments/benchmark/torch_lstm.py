"""torch.nn.LSTM with a dense head, as the study notes write it."""

import functools

import torch

from experiments.benchmark.ours import examples
from experiments.benchmark.sizes import CLASSES, Sizes
from experiments.benchmark.timing import Work


class Classifier(torch.nn.Module):
    """The notes' model; zero states are torch's own default."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.lstm = torch.nn.LSTM(
            sizes.inputs, sizes.hidden, sizes.layers, batch_first=True
        )
        self.head = torch.nn.Linear(sizes.hidden, CLASSES)

    def forward(self, x):
        """Logits (B, classes) of x (B, T, I)."""
        output, _ = self.lstm(x)
        return self.head(output[:, -1, :])


class TorchLSTM:
    """Eager, or through `torch.compile`."""

    steps_a_call = 1

    def __init__(self, threads: int, compiled: bool = False):
        self._threads = threads
        self._compiled = compiled

    def training(self, sizes: Sizes) -> Work:
        """One step: forward, backward, Adam."""
        model = self._model(sizes)
        inputs, labels = self._batch(sizes)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        criterion = torch.nn.CrossEntropyLoss()

        def step():
            loss = criterion(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return functools.partial(self._run, step)

    def inference(self, sizes: Sizes) -> Work:
        """Logits of one batch."""
        model = self._model(sizes).eval()
        inputs, _ = self._batch(sizes)

        @torch.inference_mode()
        def logits():
            model(inputs)

        return functools.partial(self._run, logits)

    def _run(self, work: Work) -> None:
        torch.set_num_threads(self._threads)
        work()

    def _model(self, sizes: Sizes):
        torch.manual_seed(0)
        model = Classifier(sizes)
        return torch.compile(model) if self._compiled else model

    def _batch(self, sizes: Sizes):
        inputs, labels = examples(sizes)
        return torch.from_numpy(inputs), torch.from_numpy(labels).long()
