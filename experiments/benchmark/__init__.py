"""How fast the stack is, compared with Flax's own RNN and torch, all in one run."""
