"""The loops of `implementation='native'`, in C++: source, compiling, loading.

`python -m flax_lstm.native` compiles them for the machine that it runs on. Nothing
else in this package needs a compiler.
"""
