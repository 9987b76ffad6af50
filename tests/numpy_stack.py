"""The stacks written as their equations: one row, one step, one gate at a time.

It knows nothing of JAX, batches, masks or scans. A row is cut to its own length
before it is read, so that padding cannot have any effect here.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(cell, state, x):
    """One step of one row: (h, c) and x (I,) to the new (h, c)."""
    h, c = state

    def gate(name):
        from_hidden = h @ cell["h" + name]["kernel"] + cell["h" + name].get("bias", 0.0)
        return x @ cell["i" + name]["kernel"] + from_hidden

    c = sigmoid(gate("f")) * c + sigmoid(gate("i")) * np.tanh(gate("g"))
    h = sigmoid(gate("o")) * np.tanh(c)
    return (h @ cell["hr"]["kernel"] if "hr" in cell else h), c


def gru_step(cell, state, x):
    """One step of one row: (h,) and x (I,) to the new (h,)."""
    (h,) = state

    def product(name, of):
        return of @ cell[name]["kernel"] + cell[name].get("bias", 0.0)

    r = sigmoid(product("ir", x) + product("hr", h))
    z = sigmoid(product("iz", x) + product("hz", h))
    n = np.tanh(product("in", x) + r * product("hn", h))
    return ((1 - z) * n + z * h,)


def rnn_step(nonlinearity):
    def step(cell, state, x):
        """One step of one row: (h,) and x (I,) to the new (h,)."""
        (h,) = state
        z = x @ cell["i"]["kernel"] + cell["i"].get("bias", 0.0)
        return (nonlinearity(z + h @ cell["h"]["kernel"]),)

    return step


STEPS = {
    "lstm": lstm_step,
    "gru": gru_step,
    "rnn_tanh": rnn_step(np.tanh),
    "rnn_relu": rnn_step(lambda z: np.maximum(z, 0)),
}


def run(kind, params, x, states, lengths):
    """All layers and directions, of `x` (T, B, I), `states` and `lengths` (B,).

    `kind` is a key of `STEPS`, `params` the tree of a stack, as NumPy arrays, and
    `states` a tuple of arrays. Returns the output and a tuple of the final states.
    """
    states = tuple(state.copy() for state in states)
    directions = 2 if any(name.endswith("_reverse") for name in params) else 1
    for layer in range(len(params) // directions):
        outputs = []
        for direction, suffix in enumerate(("", "_reverse")[:directions]):
            cell = params[f"layer_{layer}{suffix}"]
            k = layer * directions + direction
            output = np.zeros((*x.shape[:2], states[0].shape[-1]), x.dtype)
            for row, length in enumerate(lengths):
                steps = range(length)
                for t in reversed(steps) if direction else steps:
                    of_row = tuple(state[k, row] for state in states)
                    of_row = STEPS[kind](cell, of_row, x[t, row])
                    for state, value in zip(states, of_row, strict=True):
                        state[k, row] = value
                    output[t, row] = of_row[0]
            outputs.append(output)
        x = np.concatenate(outputs, axis=-1)
    return x, states
