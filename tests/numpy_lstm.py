"""An LSTM written as its equations: one row, one step, one gate after the other.

It knows nothing of JAX, batches, masks or scans. A row is cut to its own length
before it is read, so that padding cannot have any effect here.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(cell, h, c, x):
    """One step of one row: (h, c) and x (I,) to the new (h, c)."""

    def gate(name):
        from_hidden = h @ cell["h" + name]["kernel"] + cell["h" + name].get("bias", 0.0)
        return x @ cell["i" + name]["kernel"] + from_hidden

    c = sigmoid(gate("f")) * c + sigmoid(gate("i")) * np.tanh(gate("g"))
    h = sigmoid(gate("o")) * np.tanh(c)
    return (h @ cell["hr"]["kernel"] if "hr" in cell else h), c


def lstm(params, x, hx, lengths):
    """All layers and directions, of `x` (T, B, I), `hx` and `lengths` (B,).

    `params` is the tree of a StackedLSTM, as NumPy arrays. Returns
    output, (h_n, c_n).
    """
    h_n, c_n = (state.copy() for state in hx)
    directions = 2 if any(name.endswith("_reverse") for name in params) else 1
    for layer in range(len(params) // directions):
        outputs = []
        for direction, suffix in enumerate(("", "_reverse")[:directions]):
            cell = params[f"layer_{layer}{suffix}"]
            k = layer * directions + direction
            output = np.zeros((*x.shape[:2], h_n.shape[-1]), x.dtype)
            for row, length in enumerate(lengths):
                steps = range(length)
                for t in reversed(steps) if direction else steps:
                    h_n[k, row], c_n[k, row] = lstm_step(
                        cell, h_n[k, row], c_n[k, row], x[t, row]
                    )
                    output[t, row] = h_n[k, row]
            outputs.append(output)
        x = np.concatenate(outputs, axis=-1)
    return x, (h_n, c_n)
