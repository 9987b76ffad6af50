"""Recipes: warped images, model inputs, step sizes, averaged weights."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage
from commands import assert_one_line_error, command, rows_of, train, training

from experiments import devices
from experiments.augmentation import Warp, warped
from experiments.checkpoints import Checkpoints
from experiments.data import choose, digits
from experiments.hyper_parameters import HyperParameters
from experiments.model_input import SEQUENCES, ModelInput
from experiments.recipes import RECIPES
from experiments.train_state import create_state, optimizer
from flax_lstm import LSTMClassifier

KEY = jax.random.key(0)
ROWS = jnp.arange(6)
IMAGES = jnp.asarray(digits.load().test.images[:6], jnp.float32) / digits.WHITE


def test_no_bounds_leave_images_alone():
    np.testing.assert_allclose(warped(Warp(), KEY, ROWS, IMAGES), IMAGES, atol=1e-6)


def uniform(key, bound, shape=()):
    return np.asarray(jax.random.uniform(key, shape, minval=-bound, maxval=bound))


def test_a_warp_is_that_of_scipy_with_the_drawn_numbers():
    """Rotation after shear after scale, about the middle; then the shift."""
    warp = Warp(shift=0.1, rotation=20, scale=0.2, shear=0.3)
    got = warped(warp, KEY, ROWS, IMAGES)
    for row, image in enumerate(np.asarray(IMAGES)):
        keys = jax.random.split(jax.random.fold_in(KEY, row), 5)
        angle = np.deg2rad(uniform(keys[0], warp.rotation))
        scale = np.exp(uniform(keys[1], warp.scale, (2,)))
        shear = uniform(keys[2], warp.shear)
        shift = 8 * uniform(keys[3], warp.shift, (2,))
        rotation = np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        matrix = rotation @ np.array([[1, 0], [shear, 1]]) @ np.diag(scale)
        middle = np.full(2, 3.5)
        offset = middle + shift - matrix @ middle
        # `grid-constant` fades out over a pixel at the rim, as JAX's does.
        expected = scipy.ndimage.affine_transform(
            image, matrix, offset, order=1, mode="grid-constant"
        )
        # Coordinates of up to 8 in float32, differences of pixels of up to 1.
        np.testing.assert_allclose(got[row], expected, atol=1e-5)


@pytest.mark.parametrize("axis", [1, 2], ids=["down", "across"])
def test_elastic_moves_are_of_the_stated_size(axis):
    """Of a ramp, whose values are its coordinates, the moves can be read off."""
    size, deviation = 64, 0.02
    ramp = jnp.broadcast_to(jnp.arange(size, dtype=jnp.float32), (200, size, size))
    ramp = jnp.moveaxis(ramp, 2, axis)
    moved = warped(Warp(elastic=deviation), KEY, jnp.arange(200), ramp) - ramp
    # In the middle, where a point of the grid lies; 200 draws: 5 % of the deviation.
    measured = float(moved[:, 31:33, 31:33].mean((1, 2)).std())
    assert measured == pytest.approx(size * deviation, rel=0.25)
    # From pixel to pixel they change little; the rim, behind which all is 0, apart.
    inside = np.asarray(moved[:, 8:-8, 8:-8])
    for along in (1, 2):
        assert np.abs(np.diff(inside, axis=along)).max() < size * deviation


def test_a_warp_belongs_to_the_row_not_to_the_place():
    warp = RECIPES["best"].warp
    whole = warped(warp, KEY, ROWS, IMAGES)
    part = warped(warp, KEY, ROWS[3:], IMAGES[3:])
    # Another number of rows may be computed in another order.
    np.testing.assert_allclose(part, whole[3:], atol=1e-6)
    same_image = jnp.broadcast_to(IMAGES[0], IMAGES.shape)
    different = warped(warp, KEY, ROWS, same_image)
    assert len(np.unique(different.reshape(6, -1), axis=0)) == 6
    assert not np.array_equal(whole, warped(warp, jax.random.key(1), ROWS, IMAGES))


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_model_input_has_every_pixel_once(sequence):
    model_input = ModelInput(white=1, sequence=sequence)
    images = jnp.arange(2 * 4 * 6).reshape(2, 4, 6)
    read = model_input.of(images)
    assert read.shape == (2, *model_input.shape(4, 6))
    np.testing.assert_array_equal(jnp.sort(read.reshape(2, -1)), images.reshape(2, -1))
    in_order = np.array_equal(read.reshape(2, -1), images.reshape(2, -1))
    assert in_order == (sequence != "permuted")


def test_the_permutation_is_the_same_everywhere():
    """A checkpoint depends on it: these are NumPy's first numbers of seed 0."""
    read = ModelInput(1, "permuted").of(jnp.arange(784).reshape(1, 28, 28))
    np.testing.assert_array_equal(read[0, :4, 0], [318, 2, 606, 446])


def test_one_cycle_rises_and_falls():
    schedule = RECIPES["best"].step_size(4e-3, 1000)
    sizes = np.array([schedule(step) for step in range(1001)])
    assert sizes.argmax() == 300
    assert sizes.max() == pytest.approx(4e-3)
    # Interpolated in float32, from a number that is 25 times as large.
    assert sizes[0] == pytest.approx(4e-3 / 25, rel=1e-5)
    assert sizes[-1] < 1e-6
    assert RECIPES["notes"].step_size(1e-3, 1000) == 1e-3


def test_the_mean_of_the_parameters():
    decay = 0.8
    model = LSTMClassifier(3, 2, 4, 1)
    state = create_state(model, optax.sgd(1.0), 0, (5, 2), decay)
    expected = state.params
    for step in range(100):
        grads = jax.tree.map(lambda p, step=step: p * 0 + np.sin(step), state.params)
        state = state.apply_gradients(grads=grads)
        weight = max(1 - decay, 10 / (step + 10))
        expected = jax.tree.map(
            lambda mean, new, weight=weight: mean + weight * (new - mean),
            expected,
            state.params,
        )
        # Up to 100 sums in float32.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            state.tested_params,
            expected,
        )
    assert state.tested_params is not state.params


def test_training_goes_on_from_what_is_trained_not_from_its_mean(tmp_path):
    model = LSTMClassifier(3, 2, 4, 1)
    state = create_state(model, optimizer(1e-3), 0, (5, 2), average_decay=0.9)
    state = state.replace(params=jax.tree.map(lambda p: p + 1, state.params))
    saved = Checkpoints(str(tmp_path), choose.Choice("digits"), HyperParameters())
    with contextlib.closing(saved):
        saved.save(state, model, epoch=1)
        got = saved.restore(0, state, devices.row_mesh(100, 1))
    for name in ("params", "mean_params"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(got, name), getattr(state, name)
        )


def test_the_notes_recipe_tests_what_it_trains():
    state = create_state(LSTMClassifier(3, 2, 4, 1), optimizer(1e-3), 0, (5, 2))
    assert state.tested_params is state.params


def test_options_that_are_not_given_come_from_the_recipe():
    given = {"batch_size": None, "learning_rate": 0.5, "dropout": None}
    got = HyperParameters.of_recipe("best", 3, **given)
    assert (got.batch_size, got.learning_rate, got.num_epochs) == (100, 0.5, 3)
    given = {"batch_size": 7, "learning_rate": None, "dropout": None}
    got = HyperParameters.of_recipe("notes", 3, **given)
    assert (got.batch_size, got.learning_rate, got.num_epochs) == (7, 1e-3, None)


def test_validation_examples_are_training_examples_held_out():
    data = digits.load()
    held_out = data.validating()
    assert len(held_out.test) == len(data.train) // 6
    for part in ("images", "labels"):
        joined = [getattr(held_out.split(name), part) for name in ("train", "test")]
        np.testing.assert_array_equal(np.concatenate(joined), getattr(data.train, part))


@pytest.mark.slow
def test_another_number_of_epochs_is_another_run_of_a_schedule(tmp_path):
    train(tmp_path, "--recipe=fast", "--num_epochs=1")
    done = command(*training(tmp_path, "--recipe=fast", "--num_epochs=2"))
    assert_one_line_error(done, "--num_epochs: the checkpoint has 1, this run 2")


@pytest.mark.slow
def test_the_mean_is_what_is_tested_and_saved(tmp_path):
    output = train(tmp_path, "--recipe=best", "--num_epochs=2")
    last = rows_of(tmp_path)[-1]
    assert f"Final test: loss {last['test_loss']:.4f}" in output
