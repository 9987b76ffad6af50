"""Times the stack against Flax's own RNN and torch; see experiments/BENCHMARK.md.

Example: python -m experiments.benchmark --quick
"""

from absl import flags

from experiments import command_line
from experiments.shared_flags import define_path

flags.DEFINE_bool("quick", False, "The notes' training step and inference only.")
flags.DEFINE_bool(
    "scaling", False, "Only how the training step scales with 1, 2, 4 and 8 devices."
)
flags.DEFINE_list(
    "parts",
    None,
    "Some of: processes (the notes' sizes, one process per contender), one_process "
    "(the same in one process), eager (outside of jit), costs (compiling, importing, "
    "memory), epoch, grid, cells (GRU and RNN), growth (default: all).",
)
define_path("output", "runs/benchmark", "Path of the results, without .json and .png.")

flags.register_multi_flags_validator(
    ["quick", "scaling", "parts"],
    lambda given: sum(value not in (None, False) for value in given.values()) < 2,
    "expected at most one of them",
)

FLAGS = flags.FLAGS


def main() -> None:
    # After the flags are parsed, so that `--help` and a mistyped flag answer at once.
    from experiments.benchmark import run

    if FLAGS.scaling:
        run.run_scaling(FLAGS.output)
    elif FLAGS.quick:
        run.run_quick(FLAGS.output)
    else:
        run.run(run.PARTS if FLAGS.parts is None else FLAGS.parts, FLAGS.output)


if __name__ == "__main__":
    command_line.run(main)
