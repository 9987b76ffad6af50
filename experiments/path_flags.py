"""Flags with paths, in which a leading `~` is the home directory.

A shell replaces it at the beginning of a word only, not behind `--workdir=`.
"""

import os

from absl import flags

flags.disclaim_key_flags()  # They belong to the module that calls.


class _PathParser(flags.ArgumentParser[str]):
    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


class _PathsParser(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [os.path.expanduser(path) for path in super().parse(argument)]


def define_path(name: str, default: str | None, help: str) -> None:
    """Defines a flag with a path."""
    flags.DEFINE(
        _PathParser(), name, default, help, serializer=flags.ArgumentSerializer()
    )
    flags.register_validator(name, lambda path: path != "", "expected a path")


def define_paths(name: str, default: list[str] | None, help: str) -> None:
    """Defines a flag with several, with commas between them."""
    flags.DEFINE(
        _PathsParser(), name, default, help, serializer=flags.CsvListSerializer(",")
    )


def define_workdir_of_a_run() -> None:
    """Defines --workdir of a command that reads what a run has left; it is needed."""
    folder = "folder of a run of experiments.mnist"
    define_path("workdir", None, f"The {folder} (required).")
    require("workdir", f"expected the {folder}")


def require(name: str, expected: str) -> None:
    """The flag must be given; else an error that says what was `expected`."""
    flags.register_validator(name, lambda value: value is not None, expected)
