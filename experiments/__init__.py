"""Command-line experiments on top of `flax_lstm`; see the README."""
