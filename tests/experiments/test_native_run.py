"""A run where the native loops are compiled, which 'auto' then takes."""

import os
import re

import compiled_loops
import numpy as np
import pytest
from commands import assert_same_run, command, rows_of, training


@pytest.fixture
def environment():
    return {**os.environ, "FLAX_LSTM_CACHE_DIR": compiled_loops.directory()}


def run(environment, *arguments):
    done = command(*arguments, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_run_continues_bit_for_bit_and_predicts_without_the_loops(
    cell, environment, tmp_path
):
    whole, parts, fused = (tmp_path / name for name in ("whole", "parts", "fused"))
    flags = ("--dropout=0.1", "--seed=1", f"--cell={cell}")
    said = run(environment, *training(whole, "--num_epochs=4", *flags))
    assert "\nLoops: native\n" in said
    for epochs in (2, 4):
        run(environment, *training(parts, f"--num_epochs={epochs}", *flags))
    assert_same_run(parts, whole)

    said = run(os.environ, *training(fused, "--num_epochs=4", *flags))
    others = "fused" if cell == "lstm" else "scan"
    assert f"\nLoops: {others}; `python -m flax_lstm.native` compiles faster" in said
    # Another order of sums, which shows that the loops were there.
    assert [row["train_loss"] for row in rows_of(whole)] != [
        row["train_loss"] for row in rows_of(fused)
    ]
    for by_loops, by_fused in zip(rows_of(whole), rows_of(fused), strict=True):
        np.testing.assert_allclose(
            by_loops["train_loss"], by_fused["train_loss"], rtol=1e-3
        )

    predict = ("predict", f"--workdir={whole}", "--index=3")
    by_loops, by_fused = (run(env, *predict) for env in (environment, os.environ))
    decimals = r"-?\d+\.\d+"
    assert re.sub(decimals, "", by_loops) == re.sub(decimals, "", by_fused)
    numbers = [
        [float(number) for number in re.findall(decimals, printed)]
        for printed in (by_loops, by_fused)
    ]
    assert len(numbers[0]) >= 20  # A probability and a logit for each digit.
    np.testing.assert_allclose(*numbers, rtol=0, atol=2e-4)  # Four digits are printed.
