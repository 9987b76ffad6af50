"""How fast the stack is, beside Flax's own RNN and torch, all in one run."""
