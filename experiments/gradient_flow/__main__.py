"""Shows where gradients vanish and explode: RNN, GRU and LSTM.

Example: python -m experiments.gradient_flow --quick
"""

from absl import flags

from experiments import command_line
from experiments.shared_flags import define_path

flags.DEFINE_bool("quick", False, "10 steps instead of 100, and hardly any training.")
flags.DEFINE_integer(
    "seed",
    0,
    "Seed of weights, sequences and training.",
    lower_bound=0,
    upper_bound=2**31 - 2,
)
define_path(
    "output", "runs/gradient-flow", "Path of the results, without .json and -….png."
)

FLAGS = flags.FLAGS


def main() -> None:
    # After the flags are parsed, so that `--help` and a mistyped flag answer at once.
    from experiments.gradient_flow import run

    run.run(FLAGS.output, run.QUICK if FLAGS.quick else run.Sizes(), FLAGS.seed)


if __name__ == "__main__":
    command_line.run(main)
