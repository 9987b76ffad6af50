"""Compiles the loops of `implementation='native'` for this machine; see `--help`."""

import argparse
import os
import sys
import time

from flax_lstm.native import library


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flax_lstm.native",
        description=(
            "Compiles the LSTM's loops for this machine's processor and this JAX. From "
            "then on implementation='native' works here, and 'auto' takes it where it "
            "can serve. The compiler is the one that the environment variable CXX "
            "names, else c++; the result lies in $FLAX_LSTM_CACHE_DIR, else in "
            "flax_lstm in the user's cache."
        ),
    )
    parser.add_argument(
        "--remove",
        action="store_true",
        help="take the compiled loops away, so that 'auto' is 'fused' again",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help=(
            "those for this machine's NVIDIA GPU, by the command line in NVCC, else "
            "nvcc -arch=native, a toolkit's or that of JAX's extra cuda13; not run on "
            "a GPU so far, and 'auto' does not take them"
        ),
    )
    start = time.perf_counter()
    arguments = parser.parse_args()
    loops = library.GPU if arguments.gpu else library.CPU
    is_asked_for = arguments.gpu and not arguments.remove
    if is_asked_for and not (loops.made_for() or os.environ.get("NVCC")):
        print(
            "--gpu: expected a machine with an NVIDIA GPU, got one whose driver tells "
            "of none; or set NVCC to a command line with that GPU's -arch",
            file=sys.stderr,
        )
        return 1
    try:
        if arguments.remove:
            removed = loops.remove()
            print(f"removed {removed}" if removed else "there are none to remove")
        else:
            path = loops.build()
            print(f"compiled {path} in {time.perf_counter() - start:.1f} s")
    except library.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("python -m flax_lstm.native: interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells report it.
    return 0


if __name__ == "__main__":
    sys.exit(main())
