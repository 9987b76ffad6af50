"""The loops of `implementation='native'`, in C++: source, compiling, loading.

`python -m flax_lstm.native` compiles them for the machine that it runs on. Nothing
else in this package needs a compiler.
"""


def register() -> None:
    """Registers the compiled loops with XLA, for programs that were compiled before.

    Modules do this themselves where they are called. A process that only loads an
    executable, written by `jax.experimental.serialize_executable`, has to call it
    first. Calling it again does nothing.

    Raises:
        ValueError: the loops are not compiled for this machine, or the file is damaged.

    Example:
        >>> import flax_lstm.native
        >>> flax_lstm.native.register()  # doctest: +SKIP

    Source: https://docs.jax.dev/en/latest/ffi.html
    """
    from flax_lstm.native.library import CPU

    CPU.register()
