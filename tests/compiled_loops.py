"""The loops of `implementation='native'`, compiled once for all runs of the tests.

They lie in pytest's cache, where only the tests that ask for them look: for all others
'auto' is what it is for a user who has compiled nothing. Other sources and another JAX
are compiled anew: the file's name is a digest of them. It does not tell the compiler:
what the one in $CXX makes is for one run alone.
"""

import concurrent.futures
import os
import pathlib
import shutil
import tempfile
import warnings

import pytest

from flax_lstm.native import library

_CACHE = "FLAX_LSTM_CACHE_DIR"
_ROOT = "FLAX_LSTM_TESTS_ROOT"
_COMPILED = "FLAX_LSTM_TESTS_COMPILED"
_REFUSED = "FLAX_LSTM_TESTS_NO_LOOPS"


def compile_for_all(kept):
    """In the process that starts the others, which inherit the environment.

    Args:
        kept: a folder for what is compiled, or None.

    Returns:
        A folder that is there as long as the tests run.

    Raises:
        BuildError: there is a compiler, and it does not compile them.
    """
    if os.environ.get(library.CPU.compiler.variable):
        kept = None
    root = pathlib.Path(tempfile.mkdtemp(prefix="flax_lstm-"))
    os.environ[_ROOT] = str(root)
    os.environ[_COMPILED] = os.environ[_CACHE] = str(kept or root / "compiled")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for_gpu = pool.submit(_compile_for_gpu)
        compiler, *_ = library.CPU.compiler.command_line()
        if shutil.which(compiler):
            _compile(library.CPU)
        else:
            os.environ[_REFUSED] = f"native loops need a C++ compiler, {compiler}"
        for_gpu.result()
    os.environ[_CACHE] = str(root / "nothing")
    return root


def _compile_for_gpu():
    if not library.GPU.made_for():
        return
    if not shutil.which(library.GPU.compiler.command_line()[0]):
        return
    try:
        _compile(library.GPU)
    except library.BuildError as error:  # The tests that need them say so, too.
        warnings.warn(f"the GPU's kernels are not compiled: {error}", stacklevel=2)


def _compile(loops):
    if not loops.path().is_file():
        loops.build()


def remove():
    if _ROOT in os.environ:  # Not where tests are only listed.
        shutil.rmtree(os.environ[_ROOT], ignore_errors=True)


def directory():
    """Where the compiled loops lie; skips the test where there is no compiler."""
    if _REFUSED in os.environ:
        pytest.skip(os.environ[_REFUSED])
    return os.environ[_COMPILED]


def load():
    """Makes `implementation='native'` work in this process."""
    elsewhere = os.environ[_CACHE]
    os.environ[_CACHE] = directory()
    try:
        library.CPU.register()
        library.GPU.is_usable()
    finally:
        os.environ[_CACHE] = elsewhere
