"""Flags that several commands have, and flags with paths.

A leading `~` of a path is the home directory: a shell replaces it at the beginning of
a word only, not after `--workdir=`.
"""

import os

from absl import flags

flags.disclaim_key_flags()  # They belong to the module that calls.


def _expanded(path: str) -> str:
    expanded = os.path.expanduser(path)
    if expanded == path and (path == "~" or path.startswith("~/")):
        raise ValueError("expected another path, as there is no home directory")
    return expanded


class _PathParser(flags.ArgumentParser[str]):
    def parse(self, argument: str) -> str:
        return _expanded(argument)


class _PathsParser(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [_expanded(path) for path in super().parse(argument)]


def define_path(name: str, default: str | None, help: str) -> None:
    """Defines a flag with a path."""
    flags.DEFINE(
        _PathParser(), name, default, help, serializer=flags.ArgumentSerializer()
    )
    flags.register_validator(name, lambda path: path != "", "expected a path")


def define_picture(default: str | None, help: str) -> None:
    """Defines --output of a command that writes a picture."""
    define_path("output", default, help)
    flags.register_validator(
        "output",
        lambda path: path is None or path.lower().endswith(".png"),
        "expected a path that ends in .png",
    )


def define_paths(name: str, default: list[str] | None, help: str) -> None:
    """Defines a flag with several paths, with commas between them."""
    flags.DEFINE(
        _PathsParser(), name, default, help, serializer=flags.CsvListSerializer(",")
    )


def define_workdir_of_a_run() -> None:
    """Defines --workdir, required, for a command that reads what a run has left."""
    folder = "folder of a run of experiments.mnist"
    define_path("workdir", None, f"The {folder} (required).")
    require("workdir", f"expected the {folder}")


def define_step() -> None:
    """Defines --step of a command that reads a run's checkpoints."""
    flags.DEFINE_integer(
        "step", None, "Which checkpoint (default: the newest).", lower_bound=0
    )


def define_mnist_folders() -> None:
    """Defines --data_dir and --manual_dir."""
    define_path(
        "data_dir", None, "Where MNIST is prepared (default: ~/tensorflow_datasets)."
    )
    define_path("manual_dir", None, "Folder with MNIST's four upstream files.")


def require(name: str, expected: str) -> None:
    """The flag must be given; else an error that says what was `expected`."""
    flags.register_validator(name, lambda value: value is not None, expected)
