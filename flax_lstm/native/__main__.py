"""Compiles the loops of `implementation='native'` for this machine; see `--help`."""

import argparse
import os
import signal
import sys
import time

from flax_lstm.native import library


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flax_lstm.native",
        allow_abbrev=False,
        description=(
            "Compiles an LSTM's and a GRU's loops for this machine's processor and JAX "
            "version. From then on implementation='native' works here, and 'auto' uses "
            "it where it is applicable. The compiler is the one that the environment "
            "variable CXX names, else c++; the result is stored in "
            "$FLAX_LSTM_CACHE_DIR, else in flax_lstm in the user's cache directory."
        ),
    )
    parser.add_argument(
        "--remove",
        action="store_true",
        help="remove all compiled loops, so that 'auto' does without them again",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help=(
            "compile or remove the kernels for this machine's NVIDIA GPU instead; the "
            "compiler is the command line in NVCC, else nvcc -arch=native, from a CUDA "
            "toolkit or from JAX's extra cuda13; not run on a GPU so far, and not used "
            "by 'auto'"
        ),
    )
    # As Ctrl-C does, they leave nothing half-made behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # As `nohup` wants it.
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    _open_closed()
    start = time.perf_counter()
    arguments = parser.parse_args()
    loops = library.GPU if arguments.gpu else library.CPU
    is_asked_for = arguments.gpu and not arguments.remove
    if is_asked_for and not (loops.made_for() or os.environ.get("NVCC")):
        print(
            "--gpu: expected a machine with an NVIDIA GPU, got one whose driver reports"
            " none; to compile for another machine's GPU, set NVCC to a command line "
            "with its -arch",
            file=sys.stderr,
        )
        return 1
    try:
        if arguments.remove:
            removed = loops.remove()
            for path in removed:
                print(f"removed {path}")
            if not removed:
                print("no compiled loops to remove")
        else:
            path = loops.build()
            print(f"compiled {path} in {time.perf_counter() - start:.1f} s")
        sys.stdout.flush()
    except OSError as error:  # A full disk, or nobody who reads.
        # Otherwise Python, at its exit, would fail to write what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(
            f"python -m flax_lstm.native: can't write to stdout: {error.strerror}",
            file=sys.stderr,
        )
        return 1
    except library.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("python -m flax_lstm.native: interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells report it.
    return 0


def _open_closed() -> None:
    """A stream that a parent closed (`2>&-`) is None in Python."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)


if __name__ == "__main__":
    sys.exit(main())
