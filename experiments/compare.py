"""Draws the test curves of several runs as one picture.

Example: python -m experiments.compare --workdirs=runs/lstm,runs/gru --names=lstm,gru
"""

import os
from typing import Any

from absl import flags

from experiments import command_line
from experiments.shared_flags import define_paths, define_picture, require

define_paths(
    "workdirs",
    None,
    "Folders of runs of experiments.mnist, with commas between them (required).",
)
flags.DEFINE_list("names", None, "A name for each run (default: the folders' names).")
define_picture("comparison.png", "The PNG to write.")
require("workdirs", "expected folders of runs of experiments.mnist")

FLAGS = flags.FLAGS


def main() -> None:
    # After the flags are parsed, so that `--help` and a mistyped flag answer at once.
    from experiments import metrics
    from experiments.errors import RunError, naming
    from experiments.pictures.curves import save_comparison

    folders = FLAGS.workdirs
    if not all(folders) or not folders:
        raise RunError(
            f"--workdirs: expected folders with commas between them, got "
            f"{','.join(folders) or 'none'}"
        )
    names = FLAGS.names or [os.path.basename(os.path.abspath(f)) for f in folders]
    # Bytes that are no text can't be drawn.
    names = [os.fsencode(name).decode(errors="replace") for name in names]
    is_named = all(names) and len(set(names)) == len(names) == len(folders)
    if not is_named:
        raise RunError(
            f"--names: expected {len(folders)} different ones, one for each of "
            f"--workdirs, got {', '.join(names)}"
        )
    runs = {}
    for name, folder in zip(names, folders, strict=True):
        with naming("--workdirs"):
            runs[name] = metrics.rows(folder)
        if not runs[name]:
            raise RunError(
                f"--workdirs: expected a folder with a {metrics.FILE_NAME} of at least "
                f"one epoch, got {folder}"
            )
    examples = {name: _tested_on(rows[-1]) for name, rows in runs.items()}
    if len(set(examples.values())) > 1:
        of_each = ", ".join(f"{name}: {tested}" for name, tested in examples.items())
        print(f"Note: these runs were tested on different examples ({of_each})")
    with naming("--output"):
        save_comparison(runs, FLAGS.output)
    print(f"Picture: {FLAGS.output}")


def _tested_on(row: dict[str, Any]) -> str:
    held_out = ", held out of the training examples" if row.get("validate") else ""
    return f"{row.get('dataset')}{held_out}"


if __name__ == "__main__":
    command_line.run(main)
