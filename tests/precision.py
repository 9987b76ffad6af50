"""Whether products keep the precision that was asked for when a layer was traced."""

import jax


def assert_products_are_precise(loss, variables, x):
    """Of `loss(variables, x)`, its gradient and its tangent, lowered later."""

    def gradient(variables, x):
        return jax.grad(loss)(variables, x)

    def tangent(variables, x):
        return jax.jvp(loss, (variables, x), (variables, x))

    for function in (loss, gradient, tangent):
        with jax.default_matmul_precision("highest"):
            traced = jax.jit(function).trace(variables, x)
        with jax.default_matmul_precision("default"):
            text = traced.lower().as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products
        assert all("HIGHEST" in line for line in products), products
