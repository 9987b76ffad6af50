"""A whole epoch with its test pass: ours, and the notes' script in torch."""

import jax
import numpy as np

from experiments.batches import DeviceSplit
from experiments.benchmark.sizes import CLASSES, NOTES
from experiments.benchmark.timing import Work
from experiments.data.dataset import Split
from experiments.devices import row_mesh
from experiments.evaluation import BATCH_SIZE, evaluate
from experiments.model_input import ModelInput
from experiments.train_state import create_state, optimizer
from experiments.training import Epochs
from flax_lstm import LSTMClassifier

TRAIN_EXAMPLES, TEST_EXAMPLES = 60_000, 10_000
_MODEL_INPUT = ModelInput(white=255)


def made_up_splits() -> tuple[Split, Split]:
    """Random uint8 images of MNIST's size; no timing depends on what they show."""
    return _made_up_rows(TRAIN_EXAMPLES, 0), _made_up_rows(TEST_EXAMPLES, 1)


def _made_up_rows(examples: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(
        0, _MODEL_INPUT.white + 1, (examples, NOTES.steps, NOTES.inputs), dtype=np.uint8
    )
    return Split(images, rng.integers(0, CLASSES, examples, dtype=np.int32))


def our_epoch(train: Split, test: Split, implementation: str = "auto") -> Work:
    """The experiment's epoch: shuffling, steps in compiled chunks, test pass."""
    model = LSTMClassifier(
        CLASSES,
        NOTES.inputs,
        NOTES.hidden,
        NOTES.layers,
        implementation=implementation,
    )
    mesh = row_mesh(NOTES.batch)
    epochs = Epochs(DeviceSplit.of(train, mesh), NOTES.batch, _MODEL_INPUT, mesh)
    tested = DeviceSplit.of(test, mesh)
    state = create_state(model, optimizer(1e-3), 0, train.images.shape[1:])
    number, progress = 0, None

    def work():
        nonlocal state, number, progress
        number += 1
        state, progress = epochs.run(state, number, epochs.start(progress))
        jax.block_until_ready(evaluate(model, state.params, tested, _MODEL_INPUT, mesh))

    return work


def torch_epoch(train: Split, test: Split, threads: int, tuned: bool) -> Work:
    """The notes' loop: DataLoader, one Python step a batch, test pass.

    An example becomes a tensor as torchvision's `ToTensor` makes it one, without
    the image library in between, which makes this the faster of the two. The test
    pass has batches as large as ours.
    """
    import torch

    from experiments.benchmark.torch_lstm import (
        Classifier,
        device_matching_jax,
        flush_subnormals,
    )

    class Images(torch.utils.data.Dataset):
        def __init__(self, split: Split):
            self._images = torch.from_numpy(split.images)
            self._labels = split.labels.tolist()

        def __len__(self) -> int:
            return len(self._labels)

        def __getitem__(self, index: int):
            return self._images[index].float().div(_MODEL_INPUT.white), self._labels[
                index
            ]

    if tuned:
        flush_subnormals()
    torch.manual_seed(0)
    device = device_matching_jax()
    model = Classifier(NOTES).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=tuned or None)
    criterion = torch.nn.CrossEntropyLoss()
    load = torch.utils.data.DataLoader
    train_loader = load(Images(train), batch_size=NOTES.batch, shuffle=True)
    test_loader = load(Images(test), batch_size=BATCH_SIZE)

    def work():
        torch.set_num_threads(threads)
        model.train()
        for inputs, labels in train_loader:
            inputs, labels = inputs.to(device), labels.to(device)
            loss = criterion(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        correct = 0
        with torch.no_grad():
            for inputs, labels in test_loader:
                inputs, labels = inputs.to(device), labels.to(device)
                correct += (model(inputs).argmax(1) == labels).sum().item()

    return work
