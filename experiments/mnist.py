"""Trains an LSTM to read MNIST digits row by row, tests it, saves it and loads it.

Example: python -m experiments.mnist --num_layers=2
"""

from absl import flags

from experiments import command_line
from experiments.data import choose
from experiments.hyper_parameters import HyperParameters
from experiments.model_input import SEQUENCES
from experiments.recipes import RECIPES
from experiments.shared_flags import define_mnist_folders, define_path
from flax_lstm import CLASSIFIERS, POOLINGS

_DEFAULTS = HyperParameters()
_MOST = 2**31 - 1  # In an int32.
_LEAST_FLOAT, _MOST_FLOAT = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # In a float32.


def _of_recipes(option: str) -> str:
    """What the recipes have for it, for a flag's help."""
    values = {name: getattr(recipe, option) for name, recipe in RECIPES.items()}
    if len(set(values.values())) == 1:
        return f"(default: {values[_DEFAULTS.recipe]})"
    each = ", ".join(f"{name} {value:g}" for name, value in values.items())
    return f"(default: the recipe's; {each})"


def _are_of_one_run(address: str | None, *numbers: int | None) -> bool:
    needed = address not in (None, "auto")
    return all((number is not None) == needed for number in numbers)


def _is_one_of(index: int | None, number: int | None) -> bool:
    return index is None or number is None or index < number


flags.DEFINE_enum(
    "recipe",
    _DEFAULTS.recipe,
    list(RECIPES),
    "notes: constant step size, as in the study notes (see the README); fast: their "
    "accuracy in a few epochs; best: the highest accuracy.",
)
flags.DEFINE_enum(
    "sequence",
    _DEFAULTS.sequence,
    SEQUENCES,
    "What a step reads: a row, a pixel, or a pixel in a fixed random order.",
)
flags.DEFINE_enum(
    "cell", _DEFAULTS.cell, list(CLASSIFIERS), "Kind of recurrent layer; rnn uses tanh."
)
flags.DEFINE_enum(
    "pooling",
    _DEFAULTS.pooling,
    POOLINGS,
    "How the outputs become the vector that is classified: the last one, the final "
    "states (with --bidirectional each direction's own last output), their mean, or a "
    "mean weighted by learned attention.",
)
flags.DEFINE_integer(
    "hidden_size",
    _DEFAULTS.hidden_size,
    "Units per layer.",
    lower_bound=1,
    upper_bound=_MOST,
)
flags.DEFINE_integer(
    "num_layers",
    _DEFAULTS.num_layers,
    "Layers of the stack.",
    lower_bound=1,
    upper_bound=_MOST,
)
flags.DEFINE_bool(
    "bidirectional", _DEFAULTS.bidirectional, "Read the rows from both ends."
)
flags.DEFINE_float(
    "dropout",
    None,
    "Probability that an element of the output of any layer but the last is zeroed "
    f"{_of_recipes('dropout')}.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_integer(
    "batch_size",
    None,
    f"Examples per step {_of_recipes('batch_size')}.",
    lower_bound=1,
    upper_bound=_MOST,
)
flags.DEFINE_float(
    "learning_rate",
    None,
    f"Adam's learning rate, its peak if scheduled {_of_recipes('learning_rate')}.",
)
flags.DEFINE_integer(
    "num_epochs", None, f"Total epochs {_of_recipes('num_epochs')}.", lower_bound=1
)
flags.DEFINE_integer(
    "seed",
    _DEFAULTS.seed,
    "Seed of the initial weights, the order of examples, and all randomness in a step.",
    lower_bound=0,
    upper_bound=_MOST,
)
flags.DEFINE_enum(
    "dataset",
    "auto",
    choose.CHOICES,
    "mnist, fashion_mnist: the real one, or an error; digits: the embedded 8x8 digits; "
    "auto: MNIST if it is available within seconds, else digits, with a notice.",
)
flags.DEFINE_bool(
    "validate",
    _DEFAULTS.validate,
    "Test on the last sixth of the training examples, and train on the others.",
)
define_mnist_folders()
define_path(
    "workdir", None, "Checkpoints and metrics (default: runs/, named by the flags)."
)
flags.DEFINE_integer(
    "num_devices",
    None,
    "Devices that share a batch (default: as many as get at least 25 rows of it each; "
    "on a CPU one per core, or a single one if an LSTM's or GRU's native loops are "
    "compiled).",
    lower_bound=1,
)
flags.DEFINE_string(
    "coordinator_address",
    None,
    "host:port of process 0 of a run of several processes, all started with the same "
    "flags on one file system; auto: as JAX detects it in a cluster (Slurm, …).",
)
flags.DEFINE_integer(
    "num_processes", None, "Number of processes; not with auto.", lower_bound=1
)
flags.DEFINE_integer(
    "process_index", None, "Index of this process; not with auto.", lower_bound=0
)
# For absl, NaN is within any bounds.
flags.register_validator(
    "dropout", lambda value: value is None or value == value, "expected a number"
)
flags.register_multi_flags_validator(
    ["coordinator_address", "num_processes", "process_index"],
    lambda given: _are_of_one_run(*given.values()),
    "expected all of them, or --coordinator_address=auto alone, or none",
)
flags.register_multi_flags_validator(
    ["num_processes", "process_index"],
    lambda given: _is_one_of(given["process_index"], given["num_processes"]),
    "expected a --process_index below --num_processes",
)
flags.register_validator(
    "learning_rate",
    lambda value: value is None or _LEAST_FLOAT <= value <= _MOST_FLOAT,
    f"expected a positive number between {_LEAST_FLOAT:.3g} and {_MOST_FLOAT:.3g}, as "
    "float32 has them",
)

FLAGS = flags.FLAGS


def main() -> None:
    # After the flags are parsed, so that `--help` and a mistyped flag answer at once.
    from experiments import processes, run

    if FLAGS.coordinator_address is not None:
        processes.join(
            FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_index
        )
    num_epochs = FLAGS.num_epochs or RECIPES[FLAGS.recipe].num_epochs
    run.train_and_test(
        HyperParameters.of_recipe(
            FLAGS.recipe,
            num_epochs,
            sequence=FLAGS.sequence,
            cell=FLAGS.cell,
            pooling=FLAGS.pooling,
            hidden_size=FLAGS.hidden_size,
            num_layers=FLAGS.num_layers,
            bidirectional=FLAGS.bidirectional,
            dropout=FLAGS.dropout,
            batch_size=FLAGS.batch_size,
            learning_rate=FLAGS.learning_rate,
            seed=FLAGS.seed,
            validate=FLAGS.validate,
        ),
        num_epochs=num_epochs,
        dataset=FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        manual_dir=FLAGS.manual_dir,
        workdir=FLAGS.workdir,
        num_devices=FLAGS.num_devices,
    )


if __name__ == "__main__":
    command_line.run(main)
