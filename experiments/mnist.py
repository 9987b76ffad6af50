"""Trains an LSTM to read MNIST digits row by row; see `--help` and the README."""

from absl import flags

from experiments import command_line
from experiments.data import choose
from experiments.hyper_parameters import HyperParameters

_DEFAULTS = HyperParameters()

flags.DEFINE_integer(
    "hidden_size", _DEFAULTS.hidden_size, "Units of a layer.", lower_bound=1
)
flags.DEFINE_integer(
    "num_layers", _DEFAULTS.num_layers, "Layers of the stack.", lower_bound=1
)
flags.DEFINE_bool(
    "bidirectional", _DEFAULTS.bidirectional, "Read the rows from both ends."
)
flags.DEFINE_float(
    "dropout",
    _DEFAULTS.dropout,
    "Probability that an element of a layer's output (but the last's) is zeroed.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_integer(
    "batch_size", _DEFAULTS.batch_size, "Examples a step.", lower_bound=1
)
flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "Adam's step size.")
flags.DEFINE_integer("num_epochs", 30, "Epochs in all.", lower_bound=1)
flags.DEFINE_integer(
    "seed",
    _DEFAULTS.seed,
    "Weights, order of the examples and dropout follow from it.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
flags.DEFINE_enum(
    "dataset",
    "auto",
    choose.CHOICES,
    "mnist: real MNIST, or an error; digits: the embedded 8x8 digits; auto: MNIST "
    "if it can be had within seconds, else digits, said aloud.",
)
flags.DEFINE_string(
    "data_dir", None, "Where MNIST is prepared (default: ~/tensorflow_datasets)."
)
flags.DEFINE_string("manual_dir", None, "Folder with MNIST's four upstream files.")
flags.DEFINE_string(
    "workdir", None, "Checkpoints and metrics (default: runs/, named by the flags)."
)
flags.DEFINE_integer(
    "num_devices",
    None,
    "Devices that share a batch (default: all that have at least 25 rows of it).",
    lower_bound=1,
)
flags.DEFINE_string(
    "coordinator_address",
    None,
    "host:port of process 0 of a run of several processes, all started with the same "
    "flags on one file system; auto: what JAX finds out in a cluster (Slurm, …).",
)
flags.DEFINE_integer(
    "num_processes", None, "How many processes, not with auto.", lower_bound=1
)
flags.DEFINE_integer(
    "process_index", None, "Which one this is, not with auto.", lower_bound=0
)
flags.register_validator(
    "learning_rate",
    lambda value: 0 < value < float("inf"),
    "expected a positive number",
)

FLAGS = flags.FLAGS


def main() -> None:
    # Behind the flags, so that `--help` and a mistyped flag answer at once.
    from experiments import processes, run

    if FLAGS.coordinator_address is not None:
        processes.join(
            FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_index
        )
    run.train_and_test(
        HyperParameters(
            hidden_size=FLAGS.hidden_size,
            num_layers=FLAGS.num_layers,
            bidirectional=FLAGS.bidirectional,
            dropout=FLAGS.dropout,
            batch_size=FLAGS.batch_size,
            learning_rate=FLAGS.learning_rate,
            seed=FLAGS.seed,
        ),
        num_epochs=FLAGS.num_epochs,
        dataset=FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        manual_dir=FLAGS.manual_dir,
        workdir=FLAGS.workdir,
        num_devices=FLAGS.num_devices,
    )


if __name__ == "__main__":
    command_line.run(main)
