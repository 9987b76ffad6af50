"""The compiled loops: where they are stored, building and loading them.

The file's name depends on what it was built from and for: the source, the version of
JAX, the compiler's options, and the processor's instructions or the GPUs. A file for
another source, JAX or machine (in a home directory that several machines share) has
another name and is never loaded.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping

import jax
import jaxlib

from flax_lstm.native import machine, trusted_file
from flax_lstm.native.compiler import CXX, NVCC, BuildError as BuildError, Compiler

_SOURCES = pathlib.Path(__file__).parent
# As they were when this package was imported: loops that were compiled since, from
# other sources, may expect other arguments.
_TEXTS = {
    path.name: path.read_text("utf-8")
    for suffix in ("cc", "cu", "h")
    for path in sorted(_SOURCES.glob(f"*.{suffix}"))
}
_UNFINISHED = ".tmp"


@dataclasses.dataclass(frozen=True, eq=False)
class Library:
    """The loops for one kind of device.

    Attributes:
        implementation: what it is called in messages.
        platform: XLA's name for the kind of device.
        source: the file that is compiled, which includes others.
        compiler: what compiles it.
        targets: XLA's name for each loop, and its symbol in the file.
        made_for: returns what else the file depends on, the processor or the GPUs.
        command: the command that compiles the loops.
    """

    implementation: str
    platform: str
    source: str
    compiler: Compiler
    targets: Mapping[str, str]
    made_for: Callable[[], str]
    command: str

    def path(self) -> pathlib.Path:
        """Where the loops for this machine lie once they are compiled.

        Raises:
            OSError: there is no such place, since the user has no home directory.
        """
        directory = os.environ.get("FLAX_LSTM_CACHE_DIR")
        if directory:
            return (pathlib.Path(directory) / self._file_name()).absolute()
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not cache.is_absolute():  # The XDG standard says to ignore such a path.
            try:
                cache = pathlib.Path.home() / ".cache"
            except RuntimeError as error:
                raise OSError(str(error)) from error
        return cache / "flax_lstm" / self._file_name()

    def is_usable(self) -> bool:
        """Whether there are intact compiled loops for this machine.

        If so, they are loaded. Warns of a file that exists but can't be loaded, and if
        there are only files for something else, such as an older JAX.
        """
        try:
            if not self.path().is_file():
                self._warn_of_others(self.path())
                return False
        except OSError:  # No home, or a directory that may not be searched.
            return False
        try:
            self.register()
        except ValueError as error:
            _warn_once(f"{error}; until then 'auto' does without them")
            return False
        return True

    def build(self) -> pathlib.Path:
        """Compiles the loops, even if they already exist.

        Returns:
            The compiled file, which is put in its place atomically.

        Raises:
            BuildError: no compiler, one that fails, or a directory that can't be
                written to.
        """
        try:
            target = self.path()
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            trusted_file.require_only_owner_writes(target.parent)
            with tempfile.TemporaryDirectory(
                prefix=f"{self._stem}-", suffix=_UNFINISHED, dir=target.parent
            ) as directory:
                # No name that was loaded before: the loader would not look again.
                made = pathlib.Path(directory, os.path.basename(directory))
                self.compiler.compile(_SOURCES / self.source, made)
                trusted_file.seal(made)
                self._try_to_load(made)
                os.replace(made, target)
        except OSError as error:
            raise BuildError(
                f"can't store the compiled loops: {error}; set FLAX_LSTM_CACHE_DIR to "
                f"a directory that only you can write to"
            ) from error
        return target

    def remove(self) -> list[pathlib.Path]:
        """Removes the compiled loops, also those for another JAX or machine.

        Returns:
            What was there: files, and folders of builds that were killed.

        Raises:
            BuildError: a directory that can't be written.
        """
        try:
            folder = self.path().parent
            files = self._all_in(folder)
            for file in files:
                file.unlink(missing_ok=True)
            unfinished = self._all_in(folder, _UNFINISHED)
            for build in unfinished:
                shutil.rmtree(build)
        except OSError as error:
            raise BuildError(f"can't remove the compiled loops: {error}") from error
        return files + unfinished

    @functools.cache  # noqa: B019, since the instances that it keeps alive are two.
    def register(self) -> None:
        """Loads the compiled loops and registers them with XLA, once per process.

        Raises:
            ValueError: they are not compiled, or the file is damaged.
        """
        try:
            targets = self._targets_of(self.path())
        except FileNotFoundError as error:
            raise ValueError(
                f"implementation: expected one that can run here, got "
                f"{self.implementation}, whose loops are not compiled for this machine "
                f"and this JAX ({self.path()}); run `{self.command}`, which needs "
                f"{self.compiler.needs}, or use 'auto'"
            ) from error
        except OSError as error:
            raise ValueError(
                f"implementation: {self.implementation} can't use its compiled loops: "
                f"{error}; run `{self.command}` again"
            ) from error
        for name, capsule in targets.items():
            jax.ffi.register_ffi_target(name, capsule, platform=self.platform)

    def _try_to_load(self, made: pathlib.Path) -> None:
        try:
            self._targets_of(made)
        except OSError as error:
            raise BuildError(
                f"{self.compiler.variable}: expected a compiler whose result can be "
                f"loaded here, got {error}"
            ) from error

    def _targets_of(self, compiled: pathlib.Path) -> dict[str, object]:
        """Raises an OSError if it can't be loaded, or should not be."""
        loaded = trusted_file.load(compiled)
        try:
            return {
                name: jax.ffi.pycapsule(getattr(loaded, symbol))
                for name, symbol in self.targets.items()
            }
        except AttributeError as error:  # A symbol that is not there.
            raise OSError(str(error)) from error

    @functools.cache  # noqa: B019, as above.
    def _warn_of_others(self, missing: pathlib.Path) -> None:
        others = [path for path in self._all_in(missing.parent) if path != missing]
        if others:
            _warn_once(
                f"implementation: expected {self.implementation} to find the loops "
                f"compiled for this machine, JAX and flax_lstm ({missing}), got only "
                f"others, {others[0]}; run `{self.command}` again, or with --remove; "
                f"until then 'auto' does without them"
            )

    def _all_in(self, folder: pathlib.Path, suffix: str = ".so") -> list[pathlib.Path]:
        return sorted(folder.glob(f"{self._stem}-*{suffix}"))

    @property
    def _stem(self) -> str:
        return f"lstm-{self.platform.lower()}"

    @functools.cache  # noqa: B019, as above.
    def _file_name(self) -> str:
        made_of = [jaxlib.__version__, self.made_for(), *self.compiler.options]
        headers = [name for name in _TEXTS if name.endswith(".h")]
        made_of += [_TEXTS[name] for name in (*headers, self.source)]
        digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
        return f"{self._stem}-{digest[:16]}.so"


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


CPU = Library(
    implementation="'native'",
    platform="cpu",
    source="lstm.cc",
    compiler=CXX,
    targets={
        "flax_lstm_forward": "FlaxLstmForward",
        "flax_lstm_forward_keeping": "FlaxLstmForwardKeeping",
        "flax_lstm_backward": "FlaxLstmBackward",
        "flax_gru_forward": "FlaxGruForward",
        "flax_gru_forward_keeping": "FlaxGruForwardKeeping",
        "flax_gru_backward": "FlaxGruBackward",
    },
    made_for=machine.processor,
    command="python -m flax_lstm.native",
)

GPU = Library(
    implementation="'native' on a GPU",
    platform="CUDA",
    source="lstm.cu",
    compiler=NVCC,
    targets={
        "flax_lstm_persistent_forward": "FlaxLstmPersistentForward",
        "flax_lstm_persistent_forward_keeping": "FlaxLstmPersistentForwardKeeping",
        "flax_lstm_persistent_backward": "FlaxLstmPersistentBackward",
    },
    made_for=machine.gpus,
    command="python -m flax_lstm.native --gpu",
)
