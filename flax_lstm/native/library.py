"""The compiled loops: where they lie, compiling and loading them.

The file's name tells what it was made from and for: the source, the JAX whose calls
it answers, and the processor whose instructions it has. One of another source, JAX or
machine (a home directory that several share) has another name and is never loaded.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import stat
import subprocess
import tempfile
import warnings

import jax
import jaxlib

_SOURCES = pathlib.Path(__file__).parent
_MAIN_SOURCE = "lstm.cc"
# Of the machine that compiles, which is the one that runs it. A product and a sum
# become one instruction, as in XLA's own products.
_OPTIONS = (
    *("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast"),
    *("-fPIC", "-shared"),
)
# Of the content, behind it: a loader of libraries reads what the header tells, no more.
_DIGEST_SIZE = hashlib.sha256().digest_size
TARGETS = {
    "flax_lstm_forward": "FlaxLstmForward",
    "flax_lstm_forward_keeping": "FlaxLstmForwardKeeping",
    "flax_lstm_backward": "FlaxLstmBackward",
}
"""XLA's name of each loop, and the symbol behind it."""


class BuildError(RuntimeError):
    """The loops could not be compiled; the message says why."""


def path() -> pathlib.Path:
    """Where the loops for this machine lie once they are compiled.

    Raises:
        OSError: there is no such place, since the user has no home directory.
    """
    directory = os.environ.get("FLAX_LSTM_CACHE_DIR")
    if directory:
        return (pathlib.Path(directory) / _file_name()).absolute()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # Such a one counts as missing, says its standard.
        try:
            cache = pathlib.Path.home() / ".cache"
        except RuntimeError as error:
            raise OSError(str(error)) from error
    return cache / "flax_lstm" / _file_name()


def is_usable() -> bool:
    """Whether the loops for this machine are compiled and loaded, now or before.

    Warns of a file that is there and can't be loaded.
    """
    try:
        if not path().is_file():
            return False
    except OSError:  # No home, or a directory that may not be searched.
        return False
    try:
        register()
    except ValueError as error:
        warnings.warn(f"{error}; until then 'auto' is 'fused'", stacklevel=2)
        return False
    return True


def build() -> pathlib.Path:
    """Compiles the loops, anew if they are there.

    Returns:
        The compiled file. It comes to its place whole or not at all.

    Raises:
        BuildError: no compiler, one that fails, or a directory that can't be written.
    """
    try:
        target = path()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_that_only_its_owner_writes(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent) as directory:
            made = pathlib.Path(directory) / target.name
            _compile(made)
            content = made.read_bytes()
            made.write_bytes(content + _digest(content))
            made.chmod(0o755)  # An administrator may have built it for all users.
            _try_to_load(made)
            os.replace(made, target)
    except OSError as error:
        raise BuildError(
            f"FLAX_LSTM_CACHE_DIR: expected a directory that can be written, got "
            f"{error}"
        ) from error
    return target


def remove() -> pathlib.Path | None:
    """Takes the compiled loops of this machine away.

    Returns:
        The file that was there, or None.

    Raises:
        BuildError: a directory that can't be written.
    """
    try:
        target = path()
        if not target.exists():
            return None
        target.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(
            f"FLAX_LSTM_CACHE_DIR: expected a directory that can be written, got "
            f"{error}"
        ) from error
    return target


@functools.cache
def register() -> None:
    """Loads the compiled loops and tells XLA of them, once a process.

    Raises:
        ValueError: they are not compiled, or the file is damaged.
    """
    try:
        targets = _targets_of(path())
    except FileNotFoundError as error:
        raise ValueError(
            f"implementation: expected one that can run here, got 'native', whose "
            f"loops are not compiled for this machine and JAX ({error.filename}); run "
            f"`python -m flax_lstm.native`, which needs a C++ compiler, or take 'fused'"
        ) from error
    except OSError as error:
        raise ValueError(
            f"implementation: expected 'native' to find its compiled loops whole, got "
            f"{error}; run `python -m flax_lstm.native` again"
        ) from error
    for name, capsule in targets.items():
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")


def _targets_of(compiled: pathlib.Path) -> dict[str, object]:
    """Raises an OSError if the file is not as it was written, or not this user's."""
    content = compiled.read_bytes()
    for place in (compiled.parent, compiled):
        _check_that_only_its_owner_writes(place)
    # Before it is loaded, which a file cut short would end the process by.
    if _digest(content[:-_DIGEST_SIZE]) != content[-_DIGEST_SIZE:]:
        raise OSError(f"a damaged file, {compiled}")
    try:
        loaded = ctypes.CDLL(str(compiled))
        return {
            name: jax.ffi.pycapsule(getattr(loaded, symbol))
            for name, symbol in TARGETS.items()
        }
    except AttributeError as error:  # A symbol that is not there.
        raise OSError(str(error)) from error


def _check_that_only_its_owner_writes(place: pathlib.Path) -> None:
    """And that this is the user or root: he can have this process run what he likes."""
    status = place.stat()
    if hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid()):
        raise OSError(f"{place}, which belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{place}, which other users can write")


def _try_to_load(made: pathlib.Path) -> None:
    try:
        _targets_of(made)
    except OSError as error:
        raise BuildError(
            f"CXX: expected a compiler whose result can be loaded here, got {error}"
        ) from error


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def compiler() -> list[str]:
    """The command line that compiles, as `CXX` gives it.

    Raises:
        BuildError: it can't be parsed.
    """
    given = os.environ.get("CXX", "").strip() or "c++"
    try:
        return shlex.split(given)
    except ValueError as error:
        raise BuildError(
            f"CXX: expected a compiler's command line, got {given!r}: {error}"
        ) from error


def _compile(to: pathlib.Path) -> None:
    compiles = compiler()
    command = [
        *(*compiles, *_OPTIONS),
        *("-isystem", jax.ffi.include_dir()),
        str(_SOURCES / _MAIN_SOURCE),
        *("-o", str(to)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise BuildError(
            f"CXX: expected a C++ compiler, got {compiles[0]!r} ({error.strerror}); "
            f"install one (g++ 10 or clang 13, or newer) or set CXX"
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise BuildError(
            f"CXX: expected a compiler for C++20, got status {done.returncode} of "
            f"`{shlex.join(command)}`:\n{said}"
        )
    if not to.is_file():
        raise BuildError(
            f"CXX: expected a C++ compiler, got {compiles[0]!r}, which wrote no file"
        )


@functools.cache
def _file_name() -> str:
    made_of = [jaxlib.__version__, _processor(), *_OPTIONS]
    for source in (*sorted(_SOURCES.glob("*.h")), _SOURCES / _MAIN_SOURCE):
        made_of.append(source.read_text("utf-8"))
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
    return f"lstm-{digest[:16]}.so"


def _processor() -> str:
    """The kind of processor with all instructions that it has, or the machine."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # Not on Linux.
        lines = []
    kinds = ("flags", "Features")
    flags = next((line for line in lines if line.startswith(kinds)), platform.node())
    return platform.machine() + flags
