"""Whether freed memory is kept, and for which sizes."""

import platform

import pytest
from own_process import number_from

from experiments import allocator, run
from experiments.benchmark.sizes import NOTES
from experiments.errors import RunError
from experiments.hyper_parameters import HyperParameters


def test_freed_memory_is_kept_unless_told_otherwise_outside():
    script = "from experiments.allocator import keep_freed_memory as keep;"
    script += "print(int(keep()))"
    is_glibc = platform.libc_ver()[0] == "glibc"
    assert number_from(script) == is_glibc
    assert number_from(script, MALLOC_ARENA_MAX="2") == 0


_ARENAS = """
import ctypes, os, sys, tempfile, threading
from experiments.allocator import keep_if_large
keep_if_large(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
threads = [threading.Thread(target=libc.malloc, args=(5000,)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with tempfile.TemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    file.seek(0)
    print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_memory_is_kept_in_one_arena_if_it_is_much():
    little, much = (allocator.step_bytes(32, steps, 128, 2) for steps in (28, 784))
    assert number_from(_ARENAS, arguments=[str(little)]) > 1
    assert number_from(_ARENAS, arguments=[str(much)]) == 1


def test_the_notes_run_holds_enough_for_it():
    assert HyperParameters().step_bytes == NOTES.step_bytes
    assert allocator.step_bytes(100, 28, 128, 2) == NOTES.step_bytes
    assert allocator.LARGE_BYTES < NOTES.step_bytes < 2 * allocator.LARGE_BYTES


def test_both_directions_of_a_layer_are_held():
    expected = allocator.step_bytes(100, 28, 2 * 128, 2)
    assert HyperParameters(bidirectional=True).step_bytes == expected


def test_a_run_keeps_memory_by_what_its_step_holds(monkeypatch, tmp_path):
    asked = []

    def note(bytes_at_once):
        asked.append(bytes_at_once)
        raise RunError("enough")

    monkeypatch.setattr(run, "keep_if_large", note)
    with pytest.raises(RunError, match=r"^enough$"):
        run.train_and_test(
            HyperParameters(),
            num_epochs=1,
            dataset="digits",
            data_dir=None,
            manual_dir=None,
            workdir=str(tmp_path),
            num_devices=10**6,  # Which are refused, in case it goes on.
        )
    assert asked == [NOTES.step_bytes]
