"""Dropout masks belong to a batch's examples, whichever device has them."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_epochs import after_an_epoch

from experiments.dropout import masks_by_row

KEY = jax.random.key(0)


def test_dropout_masks_belong_to_the_examples(monkeypatch):
    """Another number of devices drops the same elements; and drops some at all."""
    count = min(3, jax.device_count())
    results = [
        after_an_epoch(size, 10, 2, monkeypatch, dropout=dropout)
        for size, dropout in ((count, 0.5), (1, 0.5), (1, 0.0))
    ]
    losses = [totals["loss"] for _, _, totals, _ in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[1] != pytest.approx(losses[2], rel=1e-4)


def test_rows_of_a_batch_get_masks_of_their_own():
    x = jnp.ones((3, 4, 5))
    dropout = nn.Dropout(0.5, deterministic=False)

    def masks(rows):
        with masks_by_row(jnp.asarray(rows)):
            return dropout.apply(
                {}, x[:, : len(rows)], deterministic=False, rngs={"dropout": KEY}
            )

    whole = masks([0, 1, 2, 3])
    assert set(np.unique(whole)) == {0, 2}
    for a, b in itertools.combinations(range(4), 2):
        assert (whole[:, a] != whole[:, b]).any()
    np.testing.assert_array_equal(masks([2, 3]), whole[:, 2:])
