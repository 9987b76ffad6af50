"""The exported classifier, loaded where this package cannot be imported."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import assert_one_line_error, command, command_anew

from experiments.artifact import export_classifier
from experiments.data import digits
from experiments.model_input import ModelInput
from experiments.restored import RestoredClassifier
from flax_lstm import RNNClassifier, load_classifier

# What somebody with JAX and NumPy alone runs, on an artifact, images, and a place to
# write the logits to.
STRANGER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flax_lstm", "experiments", "flax"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
try:
    import flax_lstm
except ModuleNotFoundError:
    pass
else:
    sys.exit("flax_lstm can be imported")

import jax, jax.export, numpy as np

with open(sys.argv[1], "rb") as file:
    exported = jax.export.deserialize(file.read())
images = np.load(sys.argv[2])
one, many = exported.call(images[:1]), jax.jit(exported.call)(images)
np.save(sys.argv[3], np.concatenate([one, many]))
"""


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Path of the artifact, and what the command printed."""
    path = tmp_path_factory.mktemp("export") / "digits.jaxexport"
    done = command_anew("export", f"--workdir={trained[0]}", f"--output={path}")
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def test_it_predicts_alike_without_this_package(trained, exported, tmp_path):
    images = digits.load().test.images[:77]
    np.save(tmp_path / "images.npy", images)
    files = [exported[0], tmp_path / "images.npy", tmp_path / "logits.npy"]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    model, variables = load_classifier(trained[0])
    logits = model.apply(variables, images.astype(np.float32) / digits.WHITE)
    # The same sums, in an order that follows from the batch's size.
    np.testing.assert_allclose(
        np.load(files[2]), np.concatenate([logits[:1], logits]), rtol=1e-5, atol=1e-5
    )


def test_it_takes_any_number_of_images_and_holds_both_platforms(exported):
    artifact = jax.export.deserialize(bytearray(exported[0].read_bytes()))
    assert artifact.platforms == ("cpu", "cuda")
    (images,), (logits,) = artifact.in_avals, artifact.out_avals
    assert (images.str_short(), logits.str_short()) == ("uint8[b,8,8]", "float32[b,10]")
    assert artifact.nr_devices == 1


def test_its_user_is_told_what_goes_in_and_comes_out(exported):
    path, printed = exported
    description = json.loads(path.with_suffix(".jaxexport.json").read_text())
    assert description["input"] == (
        "uint8 (b, 8, 8): b images (1 or more), 8 rows of 8 pixels, from 0 (paper) to "
        "16 (full ink)"
    )
    assert description["output"].startswith("float32 (b, 10): logits")
    assert description["input"] in printed
    assert description["output"] in printed
    assert (description["dataset"], description["epoch"]) == ("digits", 20)


def test_it_lies_in_the_workdir_if_no_other_place_is_named(trained):
    done = command("export", f"--workdir={trained[0]}", "--step=270")
    assert done.returncode == 0, done.stderr
    path = trained[0] / "classifier.jaxexport"
    assert f"Artifact: {path}, for cpu and cuda\n" in done.stdout
    assert json.loads(path.with_suffix(".jaxexport.json").read_text())["step"] == 270
    assert jax.export.deserialize(bytearray(path.read_bytes())).in_avals


@pytest.mark.parametrize("sequence", ["pixels", "permuted"])
def test_the_order_of_the_pixels_is_inside(sequence):
    model = RNNClassifier(input_size=1, hidden_size=4, num_layers=1)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 64, 1)))
    classifier = RestoredClassifier(
        workdir="",
        model=model,
        variables=variables,
        dataset="digits",
        sequence=sequence,
        validated=False,
        epoch=1,
        step=1,
    )
    content = export_classifier(classifier).content
    images = digits.load().test.images[:3]
    ink = images.astype(np.float32) / digits.WHITE
    inputs = ModelInput(digits.WHITE, sequence).of(ink)
    # The same sums, in an order that follows from the batch's size.
    np.testing.assert_allclose(
        jax.export.deserialize(bytearray(content)).call(images),
        jax.jit(model.apply)(variables, inputs),
        rtol=1e-5,
        atol=1e-6,
    )


def test_an_output_that_cannot_be_written(trained, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.json").mkdir()
    (tmp_path / "old").write_text("old")
    for output, message in (
        ("old/classifier", f"can't write {tmp_path}/old/classifier and "),
        ("folder", "expected the path of a file, old or new, got "),
        ("old", "expected the path of a file, old or new, got "),
    ):
        done = command(
            "export", f"--workdir={trained[0]}", f"--output={tmp_path}/{output}"
        )
        assert_one_line_error(done, f"--output: {message}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "old", "old.json"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_workdir_without_a_checkpoint(tmp_path):
    done = command("export", f"--workdir={tmp_path}/none")
    assert_one_line_error(done, "--workdir: expected a folder of checkpoints")
