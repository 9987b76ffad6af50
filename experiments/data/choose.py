"""Which dataset `--dataset` means here and now."""

import dataclasses

from experiments.data import digits, mnist
from experiments.data.dataset import WHOLE, Dataset, Share
from experiments.errors import RunError

CHOICES = ("auto", mnist.NAME, mnist.FASHION, digits.NAME)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A dataset's name, and why `auto` did not take MNIST (None if nothing to say)."""

    name: str
    reason: str | None = None


def choose(
    wanted: str, recorded: Choice | None, data_dir: str | None, manual_dir: str | None
) -> Choice:
    """Resolves `auto`: what the workdir's checkpoint recorded, else MNIST, else digits.

    Raises:
        RunError: the checkpoint was trained on another dataset than is wanted, or
            `manual_dir` is no folder.
    """
    mnist.require_manual_dir(manual_dir)
    if recorded is not None:
        if wanted not in ("auto", recorded.name):
            raise RunError(
                f"--dataset: expected {recorded.name!r}, on which the checkpoint in "
                f"--workdir was trained, got {wanted!r}"
            )
        return recorded
    if wanted != "auto":
        return Choice(wanted)
    reason = mnist.why_unavailable(data_dir, manual_dir)
    return Choice(mnist.NAME) if reason is None else Choice(digits.NAME, reason)


def load(
    name: str,
    data_dir: str | None,
    manual_dir: str | None,
    share: Share = WHOLE,
    validate: bool = False,
) -> Dataset:
    """The dataset called `name`; folders as `mnist.load` takes them.

    With `validate` the test examples are taken from the training split.
    """
    if validate:
        return load(name, data_dir, manual_dir).validating(share)
    if name in mnist.TITLES:
        return mnist.load(data_dir, manual_dir, share, name)
    return digits.load(share)


def side_and_white(name: str) -> tuple[int, int]:
    """The side of a dataset's images in pixels, and its value of full ink."""
    source = mnist if name in mnist.TITLES else digits
    return source.SIDE, source.WHITE


def announcement(choice: Choice) -> str | None:
    """The lines that cannot be missed when digits stand in for MNIST."""
    if choice.reason is None:
        return None
    bar = "!" * 78
    return (
        f"{bar}\n"
        f"NOT MNIST: training on the embedded 8x8 digits of scikit-learn instead.\n"
        f"Reason: MNIST: {choice.reason}.\n"
        f"Real MNIST: --dataset=mnist with a network, or --manual_dir=FOLDER with the\n"
        f"four upstream files ({mnist.FILES[0]}, …).\n"
        f"{bar}"
    )
