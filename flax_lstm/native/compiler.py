"""The compilers of the loops in C++ and CUDA."""

import dataclasses
import errno
import importlib.util
import os
import pathlib
import platform
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable

import jax


class BuildError(RuntimeError):
    """The loops could not be compiled; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Compiler:
    """A command that makes a library of a source file.

    Attributes:
        variable: name of the environment variable with the command line.
        default: returns the command line to use where that is not set.
        needs: what has to be installed.
        options: its options.
        went_on_without_device: what it says where it compiled for another device than
            the machine's own.
    """

    variable: str
    default: Callable[[], str]
    needs: str
    options: tuple[str, ...]
    went_on_without_device: str | None = None

    def command_line(self) -> list[str]:
        """The command line that compiles, as the environment variable gives it.

        Raises:
            BuildError: it can't be parsed.
        """
        given = os.environ.get(self.variable, "").strip() or self.default()
        try:
            return shlex.split(given)
        except ValueError as error:
            raise BuildError(
                f"{self.variable}: expected a compiler's command line, got "
                f"{given!r}: {error}"
            ) from error

    def compile(self, source: pathlib.Path, to: pathlib.Path) -> None:
        """Writes `to`, and what is needed on the way beside it.

        Raises:
            BuildError: no compiler, one that fails, or one for another device.
            OSError: no space is left.
        """
        compiler = self.command_line()
        command = [
            *(*compiler, *self.options),
            *("-isystem", jax.ffi.include_dir()),
            str(source),
            *("-o", str(to)),
        ]
        variable = self.variable
        try:
            status, said = _run(command, to.parent)
        except OSError as error:
            raise BuildError(
                f"{variable}: expected a compiler, got {compiler[0]!r} "
                f"({error.strerror}); install {self.needs} or set {variable}"
            ) from error
        full = os.strerror(errno.ENOSPC)
        if status and full in said:
            raise OSError(errno.ENOSPC, full, str(to.parent))
        if status:
            raise BuildError(
                f"{variable}: expected a C++20 compiler, got exit status "
                f"{status} from `{shlex.join(command)}`:\n{said}"
            )
        if self.went_on_without_device and self.went_on_without_device in said:
            named = [part for part in compiler if not part.startswith("-arch")]
            for_h100 = shlex.quote(shlex.join([*named, "-arch=sm_90"]))
            raise BuildError(
                f"{variable}: expected a compiler that finds this machine's GPU, got "
                f"from `{shlex.join(command)}`:\n{said}\nName the GPU's kind, as in "
                f"{variable}={for_h100} for an H100"
            )
        if not to.is_file():
            raise BuildError(
                f"{variable}: expected a compiler, got {compiler[0]!r}, which wrote no "
                f"file"
            )


def _run(command: list[str], folder: pathlib.Path) -> tuple[int, str]:
    """The exit status of `command`, and what it said on stderr.

    Where this process is stopped, so are all that the command started. Their temporary
    files are in `folder`.
    """
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(folder)},
        process_group=0,
    ) as process:
        try:
            _, said = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            # The pipe ends with the last of them.
            process.communicate()
            raise
    return process.returncode, said.decode(errors="replace").strip()


def _nvcc() -> list[str]:
    """nvcc: a toolkit's, or that in JAX's CUDA packages (from CUDA 13 on)."""
    if shutil.which("nvcc"):
        return ["nvcc"]
    packages = importlib.util.find_spec("nvidia")
    places = (packages and packages.submodule_search_locations) or ()
    found = [
        path for place in places for path in pathlib.Path(place).glob("cu1*/bin/nvcc")
    ]
    if not found:
        return ["nvcc"]
    # CUDA 13.0's looks for libraries in lib64, which its package calls lib.
    nvcc = max(found)
    return [str(nvcc), f"-L{nvcc.parents[1] / 'lib'}"]


def for_the_processor_of(machine: str) -> str:
    """The option to compile for the processor that compiles, by the machine's name.

    On ARM clang 14, and so Apple's of that time, refuses -march=native.
    """
    return "-mcpu=native" if machine in ("aarch64", "arm64") else "-march=native"


CXX = Compiler(
    variable="CXX",
    default=lambda: "c++",
    needs="a C++ compiler (g++ 10 or clang 13, or newer)",
    # For the compiling machine, which is the one that runs the code. A product and a
    # sum are contracted to one instruction (FMA), as in XLA's own products.
    options=(
        *("-std=c++20", "-O3", for_the_processor_of(platform.machine())),
        *("-ffp-contract=fast", "-fPIC", "-shared"),
    ),
)

NVCC = Compiler(
    variable="NVCC",
    default=lambda: shlex.join([*_nvcc(), "-arch=native"]),
    needs="CUDA's nvcc (which JAX's extra cuda13 brings) and a C++ compiler",
    options=("-std=c++20", "-O3", "-ftz=true", "-Xcompiler=-fPIC", "-shared"),
    went_on_without_device="default arch is used",
)
