"""The compiled loops on the disk: building, finding, loading and removing them."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import compiled_loops
import jax
import jaxlib
import numpy as np
import pytest
from jax.experimental import serialize_executable

from flax_lstm import StackedLSTM
from flax_lstm.native import compiler, library, trusted_file

# Also where there is a GPU, which has no such loops.
pytestmark = pytest.mark.usefixtures("default_device_cpu")


# As processes: whether the loops are there is asked once a process.


def run(*command, cache, **environment):
    environment = {**os.environ, "FLAX_LSTM_CACHE_DIR": str(cache), **environment}
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


USE = """
import jax.numpy as jnp
from flax_lstm import StackedLSTM
fused = StackedLSTM(2, 3, implementation="fused")
x = jnp.ones((4, 1, 2))
variables = fused.init(__import__("jax").random.key(0), x)
try:
    fused.clone(implementation="native").apply(variables, x)
except ValueError as error:
    print(error)
else:
    print("done")
"""


def test_loops_that_are_not_compiled_are_asked_for(tmp_path):
    done = run("-c", USE, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("implementation: expected one that can run here, got")
    assert "python -m flax_lstm.native" in done.stdout


LOAD = """
import sys
import jax
import numpy as np
from jax.experimental import serialize_executable
import flax_lstm.native
flax_lstm.native.register()
x = np.ones((4, 1, 2), np.float32)
with open(sys.argv[1], "rb") as file:
    trees = jax.tree.structure(((x,), {})), jax.tree.structure(x)
    run = serialize_executable.deserialize_and_load(file.read(), *trees)
print(*np.asarray(run(x)).ravel())
"""


def test_a_process_that_loads_an_executable_registers_the_loops(native, tmp_path):
    lstm, x = StackedLSTM(2, 3, implementation="native"), np.ones((4, 1, 2), np.float32)
    variables = lstm.init(jax.random.key(0), x)
    compiled = jax.jit(lambda x: lstm.apply(variables, x)[0]).lower(x).compile()
    written, *_ = serialize_executable.serialize(compiled)
    (tmp_path / "executable").write_bytes(written)
    done = run("-c", LOAD, tmp_path / "executable", cache=compiled_loops.directory())
    assert done.returncode == 0, done.stderr
    output = np.array(done.stdout.split(), np.float32)
    np.testing.assert_allclose(output, np.ravel(compiled(x)), rtol=0, atol=1e-6)


def test_an_answer_that_cannot_be_printed_is_one_line(tmp_path):
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flax_lstm.native", "--remove"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"FLAX_LSTM_CACHE_DIR": str(tmp_path)},
        )
    assert done.returncode == 1
    expected = "python -m flax_lstm.native: can't write to stdout: No space left on"
    assert done.stderr == f"{expected} device\n"


USE_AUTO = USE.replace('implementation="native"', 'implementation="auto"')
SPOILT = {
    "damaged": lambda file: file.write_bytes(file.read_bytes()[:2000]),
    "other users can write": lambda file: file.chmod(0o777),
    "others' directory": lambda file: file.parent.chmod(0o777),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_loops_that_cannot_be_trusted_are_refused(spoil, native, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    compiled = cache / library.CPU.path().name
    shutil.copy(os.path.join(compiled_loops.directory(), compiled.name), compiled)
    spoil(compiled)
    done = run("-c", USE, cache=cache)
    assert done.stdout.startswith("implementation: 'native' can't use"), done
    assert done.stdout.count("\n") == 1
    # 'auto' works without them, and says so.
    done = run("-c", USE_AUTO, cache=cache)
    assert done.stdout == "done\n"
    assert "UserWarning: implementation: 'native' can't use" in done.stderr
    assert "until then 'auto' does without them" in done.stderr


def test_what_was_checked_is_what_is_loaded(native, tmp_path, monkeypatch):
    """Even if somebody replaces the folder in between."""
    name = library.CPU.path().name
    cache = tmp_path / "cache"
    shutil.copytree(compiled_loops.directory(), cache)

    def digest(content, digest=trusted_file._digest):
        if cache.exists():
            cache.rename(tmp_path / "moved")
            cache.mkdir()
            (cache / name).write_bytes(b"somebody's")
        return digest(content)

    monkeypatch.setattr(trusted_file, "_digest", digest)
    assert trusted_file.load(cache / name).FlaxLstmForward
    monkeypatch.undo()
    with pytest.raises(OSError, match=f"^{cache / name} is damaged$"):
        trusted_file.load(cache / name)


def test_auto_says_that_loops_are_for_something_else(native, tmp_path):
    """As after an update of JAX, where it is 'fused' again, and slower."""
    old = tmp_path / "lstm-cpu-0123456789abcdef.so"
    old.write_bytes(b"")
    done = run("-c", USE_AUTO, cache=tmp_path)
    assert done.stdout == "done\n"
    assert done.stderr.count(f"got only others, {old}; run `python -m flax_lstm.") == 1
    done = run("-m", "flax_lstm.native", "--remove", cache=tmp_path)
    assert done.stdout == f"removed {old}\n"
    assert not run("-c", USE_AUTO, cache=tmp_path).stderr


def test_loops_that_can_not_be_removed(tmp_path):
    (tmp_path / "lstm-cpu-0123456789abcdef.so").mkdir()
    done = run("-m", "flax_lstm.native", "--remove", cache=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("can't remove the compiled loops: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_compilation_leaves_nothing_behind(number, tmp_path):
    compiler, cache = tmp_path / "compiler", tmp_path / "cache"
    pid = tmp_path / "pid"
    # As g++ does, which starts the compiler itself.
    compiler.write_text(
        f'#!/bin/sh\ntouch "$TMPDIR/left"\nsleep 600 &\necho $! > {pid}\nwait\n'
    )
    compiler.chmod(0o700)
    environment = {"FLAX_LSTM_CACHE_DIR": str(cache), "CXX": str(compiler)}
    with subprocess.Popen(
        [sys.executable, "-m", "flax_lstm.native"], env=os.environ | environment
    ) as process:
        while not (pid.is_file() and pid.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        assert list(cache.glob("*/left"))
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert not list(cache.iterdir())
    status = pathlib.Path("/proc", pid.read_text().strip(), "stat")
    # One that has ended and that nobody has asked about is a zombie.
    assert not status.exists() or ") Z " in status.read_text()


def test_a_disk_that_is_full_is_not_called_a_compiler(tmp_path):
    compiler, cache = tmp_path / "compiler", tmp_path / "cache"
    compiler.write_text("#!/bin/sh\necho as: No space left on device >&2\nexit 1\n")
    compiler.chmod(0o700)
    done = run("-m", "flax_lstm.native", cache=cache, CXX=str(compiler))
    assert done.returncode == 1
    assert done.stderr.startswith("can't store the compiled loops: [Errno 28] No space")
    assert not list(cache.iterdir())


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_no_error_of_its_own(closed, tmp_path):
    line = [sys.executable, "-m", "flax_lstm.native"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *line],
        env=os.environ | {"FLAX_LSTM_CACHE_DIR": str(tmp_path), "CXX": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("CXX: " if closed == ">&-" else "")
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *line, "--remove"],
        env=os.environ | {"FLAX_LSTM_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_killed_compilation_left_is_removed(tmp_path):
    left = tmp_path / "lstm-cpu-abc.tmp"
    left.mkdir()
    (left / "made").touch()
    done = run("-m", "flax_lstm.native", "--remove", cache=tmp_path)
    assert done.stdout == f"removed {left}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_compiling_using_and_removing(native, tmp_path):
    cache = tmp_path / "not" / "there yet"
    done = run("-m", "flax_lstm.native", cache=cache)
    assert done.returncode == 0, done.stderr
    (compiled,) = cache.iterdir()
    assert str(compiled) in done.stdout
    assert run("-c", USE, cache=cache).stdout == "done\n"

    done = run("-m", "flax_lstm.native", "--remove", cache=cache)
    assert (done.returncode, done.stdout) == (0, f"removed {compiled}\n")
    assert not list(cache.iterdir())
    done = run("-m", "flax_lstm.native", "--remove", cache=cache)
    assert (done.returncode, done.stdout) == (0, "no compiled loops to remove\n")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-compiler", "CXX: expected a compiler, got 'no-such-compiler'"),
        ("false", "CXX: expected a C++20 compiler, got exit status 1 from `false "),
        ("true", "CXX: expected a compiler, got 'true', which wrote no file"),
        ("c++ 'x", "CXX: expected a compiler's command line, got"),
    ],
)
def test_without_a_compiler_there_is_one_error_and_no_file(command, message, tmp_path):
    done = run("-m", "flax_lstm.native", cache=tmp_path, CXX=command)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("machine", "option"),
    [("x86_64", "march"), ("aarch64", "mcpu"), ("arm64", "mcpu")],
)
def test_clang_knows_this_processor_by_an_option_that_it_has_there(machine, option):
    assert compiler.for_the_processor_of(machine) == f"-{option}=native"


def test_a_cache_that_is_no_directory_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    done = run("-m", "flax_lstm.native", cache=file)
    assert done.returncode == 1
    assert done.stderr.startswith("can't store the compiled loops: ")
    assert done.stderr.count("\n") == 1


def test_what_can_not_be_loaded_does_not_replace_what_can(tmp_path, monkeypatch):
    command = tmp_path / "compiler"
    command.write_text('#!/bin/sh\nfor last; do :; done\necho text > "$last"\n')
    command.chmod(0o700)
    monkeypatch.setenv("CXX", str(command))
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", str(tmp_path / "cache"))
    message = "^CXX: expected a compiler whose result can be loaded here, got "
    with pytest.raises(library.BuildError, match=message):
        library.CPU.build()
    assert not list((tmp_path / "cache").iterdir())


def test_nothing_is_built_where_others_can_write(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", str(tmp_path))
    message = f"other users can write to {tmp_path}"
    with pytest.raises(library.BuildError, match=message):
        library.CPU.build()
    assert not list(tmp_path.iterdir())


def test_what_another_user_owns_is_refused(tmp_path, monkeypatch):
    owner = os.getuid() or 1  # What belongs to root is trusted.
    os.chown(tmp_path, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(OSError, match=f"^{tmp_path} belongs to another user$"):
        trusted_file.require_only_owner_writes(tmp_path)


def other_options(monkeypatch):
    options = (*compiler.CXX.options, "-Ofast")
    return {"compiler": dataclasses.replace(compiler.CXX, options=options)}


def other_jax(monkeypatch):
    monkeypatch.setattr(jaxlib, "__version__", "0.0.0")
    return {}


def other_processor(monkeypatch):
    """Of a machine that has the same home."""
    text = "processor : 0\nflags : avx2\n"
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *_: text)
    return {}


@pytest.mark.parametrize("change", [other_options, other_jax, other_processor])
def test_the_files_name_tells_what_it_was_built_with_and_for(change, monkeypatch):
    before = dataclasses.replace(library.CPU).path().name
    assert dataclasses.replace(library.CPU).path().name == before
    assert dataclasses.replace(library.CPU, **change(monkeypatch)).path().name != before


def test_the_files_name_tells_the_source(native, monkeypatch, tmp_path):
    """So that a changed source is never run by loops of the old one."""
    name = library.CPU.path().name
    sources = pathlib.Path(library.__file__).parent.glob("*.[hc]*")
    texts = {source.name: source.read_text("utf-8") for source in sources}
    assert texts == library._TEXTS
    texts["layer.h"] += "// changed\n"
    # In this process it is what it was when the package was imported.
    monkeypatch.setattr(library, "_SOURCES", tmp_path)
    library.Library._file_name.cache_clear()
    assert library.CPU.path().name == name
    monkeypatch.setattr(library, "_TEXTS", texts)
    library.Library._file_name.cache_clear()
    assert library.CPU.path().name != name
    library.Library._file_name.cache_clear()
