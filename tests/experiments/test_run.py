"""The commands, as processes of their own, on the embedded digits."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import (
    assert_one_line_error,
    assert_same_run,
    command,
    command_anew,
    rows_of,
    train,
)
from PIL import Image

from experiments.data import digits
from flax_lstm import load_classifier
from flax_lstm.checkpoint import abstract_params, write_manifest


def test_training_learns_and_counts_every_example_once(trained):
    workdir, output = trained
    rows = rows_of(workdir)
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    # 14 batches of 100 and one of 37.
    assert [row["step"] for row in rows] == [15 * k for k in range(1, 21)]
    assert {(row["train_examples"], row["test_examples"]) for row in rows} == {
        (1437, 360)
    }
    assert {row["dataset"] for row in rows} == {"digits"}
    # Chance is 0.1; seeds 0 to 2 reach 0.93 to 0.95 after 30 epochs.
    assert rows[-1]["test_accuracy"] >= 0.85
    assert f"Final test: loss {rows[-1]['test_loss']:.4f}" in output
    assert "Epoch 20/20" in output


def test_a_digit_is_shown_after_training(trained):
    workdir, output = trained
    label = int(digits.load().test.labels[0])
    assert f"Test example 0:\nLabel: {label}\nPrediction: " in output
    with Image.open(workdir / "test-0.png") as picture:
        assert min(picture.size) > 300


def test_every_parameter_moved(trained):
    workdir, _ = trained
    _, early = load_classifier(workdir, step=15 * 18)
    _, late = load_classifier(workdir)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), early, late)
    assert all(jax.tree.leaves(moved))


def test_latest_three_checkpoints_are_kept(trained):
    workdir, _ = trained
    kept = ["270", "285", "300"]
    assert sorted(p.name for p in workdir.iterdir() if p.is_dir()) == kept
    assert sorted(p.stem for p in workdir.glob("*.sha256")) == kept


def test_load_classifier_gives_the_tested_model(trained):
    workdir, _ = trained
    model, variables = load_classifier(workdir)
    test = digits.load().test
    logits = model.apply(variables, test.images.astype(np.float32) / digits.WHITE)
    accuracy = int((logits.argmax(-1) == test.labels).sum()) / len(test)
    assert accuracy == rows_of(workdir)[-1]["test_accuracy"]
    assert model.dropout == 0.1


def test_checkpoint_of_other_devices_is_restored_on_the_first(trained, tmp_path):
    """Written from eight devices, of which one remains."""
    workdir, _ = trained
    model, variables = load_classifier(workdir)
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices; tests/conftest.py makes them on CPU")
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.P("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    params = jax.tree.map(
        lambda p: jax.device_put(p, spread if p.shape[0] % 8 == 0 else whole),
        variables["params"],
    )
    config = json.loads((workdir / "300" / "config" / "metadata").read_text())
    with ocp.CheckpointManager(tmp_path / "eight") as manager:
        manager.save(
            1,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params), config=ocp.args.JsonSave(config)
            ),
        )
        manager.wait_until_finished()
    write_manifest(str(tmp_path / "eight"), 1)
    code = (
        "import sys, jax, numpy as np, flax_lstm\n"
        "model, variables = flax_lstm.load_classifier(sys.argv[1])\n"
        "assert jax.device_count() == 1\n"
        "print(sum(float(np.abs(p).sum()) for p in jax.tree.leaves(variables)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "eight")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = sum(float(np.abs(p).sum()) for p in jax.tree.leaves(variables))
    assert float(done.stdout) == expected
    assert jax.tree.structure(abstract_params(model)) == jax.tree.structure(params)


def test_run_again_only_tests_again(trained):
    workdir, output = trained
    rows = rows_of(workdir, timings=True)
    again = train(workdir, "--num_epochs=20", "--dropout=0.1")
    assert "Restored: epoch 20, step 300" in again
    assert "Epoch " not in again.replace("Restored: epoch", "")
    assert rows_of(workdir, timings=True) == rows
    final = output[output.index("Final test") :]
    assert again.endswith(final)


def test_fewer_epochs_than_it_has_change_nothing_and_it_says_so(trained):
    workdir, output = trained
    again = train(workdir, "--num_epochs=5", "--dropout=0.1")
    expected = "Trained already: epoch 20, step 300, more than the 5 epochs of --num_ep"
    assert expected in again
    assert again.endswith(output[output.index("Final test") :])


def test_continued_run_equals_an_uninterrupted_one(trained, tmp_path, monkeypatch):
    """Shuffling and dropout included, to the last bit; the part compiled for itself."""
    workdir, _ = trained
    part = tmp_path / "part"
    with monkeypatch.context() as patch:
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
        train(part, "--num_epochs=2", "--dropout=0.1")
    # What a run that was stopped between an epoch's row and its checkpoint leaves.
    with open(part / "metrics.jsonl", "a") as file:
        row = rows_of(part)[-1] | {"epoch": 3, "test_accuracy": 0.0}
        file.write(json.dumps(row) + '\n{"epo')
    train(part, "--num_epochs=20", "--dropout=0.1")
    assert_same_run(part, workdir)


def test_predict_in_a_process_of_its_own(trained, tmp_path):
    workdir, _ = trained
    picture = tmp_path / "out.png"
    done = command_anew(
        "predict", f"--workdir={workdir}", "--index=3", f"--output={picture}"
    )
    assert done.returncode == 0, done.stderr
    test = digits.load().test
    model, variables = load_classifier(workdir)
    image = test.images[3:4].astype(np.float32) / digits.WHITE
    answer = int(model.apply(variables, image).argmax())
    assert f"Label: {test.labels[3]}\nPrediction: {answer}\n" in done.stdout
    assert picture.exists()

    # An answer that was found is told, also where its picture has no place.
    nowhere = picture / "out.png"
    done = command("predict", f"--workdir={workdir}", f"--output={nowhere}")
    message = f"--output: can't write {nowhere}: Not a directory"
    assert_one_line_error(done, message)
    assert "Prediction: " in done.stdout

    # The same digit from a picture of it; no dataset is read for that.
    enlarged = Image.fromarray(test.images[3] * 15).resize((80, 80), 0)
    enlarged.save(tmp_path / "digit.png")
    done = command("predict", f"--workdir={workdir}", f"--image={tmp_path}/digit.png")
    assert done.returncode == 0, done.stderr
    assert f"Prediction: {answer}\n" in done.stdout
    assert "Label" not in done.stdout


FLAG_ERRORS = {
    "unknown flag": (["mnist", "--hidden_sizes=3"], "Unknown command line flag"),
    "no number": (["mnist", "--dropout=x"], "--dropout=x"),
    "out of range": (["mnist", "--hidden_size=0"], "--hidden_size=0"),
    "learning rate": (["mnist", "--learning_rate=0"], "--learning_rate=0"),
    "dataset": (["mnist", "--dataset=cifar"], "--dataset=cifar"),
    "argument": (["mnist", "digits"], "unexpected argument 'digits'"),
}


@pytest.mark.parametrize(("flags", "message"), FLAG_ERRORS.values(), ids=FLAG_ERRORS)
def test_wrong_flag_is_one_line(flags, message):
    assert_one_line_error(command(*flags), message, status=2)


COMMANDS = {
    "benchmark": "--[no]quick",
    "compare": "--workdirs",
    "draw": "--port",
    "drawings": "--workdir",
    "export": "--workdir",
    "gates": "--index",
    "gradient_flow": "--[no]quick",
    "mnist": "--num_layers",
    "predict": "--image",
}


@pytest.mark.parametrize("module", COMMANDS)
def test_help_shows_the_flags_and_ends_well(module):
    done = command_anew(module, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert COMMANDS[module] in done.stdout


def test_other_hyper_parameters_are_named(trained):
    workdir, _ = trained
    done = command("mnist", f"--workdir={workdir}", "--hidden_size=64", "--seed=1")
    assert_one_line_error(done, "--hidden_size: the checkpoint has 128, this run 64")
    assert "--dropout: the checkpoint has 0.1, this run 0.0" in done.stderr
    assert "--seed: the checkpoint has 0, this run 1" in done.stderr


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    done = command("mnist", "--dataset=digits", f"--workdir={tmp_path}/file/run")
    assert_one_line_error(done, "--workdir: expected a writable folder")


@pytest.mark.parametrize("module", ["benchmark", "drawings", "gradient_flow"])
def test_unwritable_output_before_the_work(module, trained, tmp_path):
    name = "result.png" if module == "drawings" else "result"
    (tmp_path / "file").write_text("")
    for folder in (name, f"{name}.json"):
        (tmp_path / folder).mkdir()
    of_drawings = [f"--workdir={trained[0]}"] if module == "drawings" else []
    for output, expected in (
        (f"{tmp_path}/file/{name}", "--output: expected a path in a writable folder"),
        (f"/proc/{name}", "--output: expected a path in a writable folder"),
        (f"{tmp_path}/{name}", "--output: expected the path of a file"),
    ):
        done = command(module, f"--output={output}", *of_drawings)
        assert_one_line_error(done, expected)
        assert not done.stdout


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("mnist", ["--dropout=nan"], "dropout"),
        ("mnist", ["--num_processes=4", "--process_index=2"], "coordinator_address"),
        (
            "mnist",
            ["--coordinator_address=auto", "--process_index=2"],
            "coordinator_address",
        ),
        ("predict", ["--workdir=none", "--step=-1"], "step"),
    ],
)
def test_a_flags_value_that_cannot_be_meant_is_refused_at_once(module, flags, message):
    done = command(module, *flags)
    assert_one_line_error(done, message, status=2)
    assert not done.stdout


def test_an_address_without_a_port():
    flags = ("--coordinator_address=localhost", "--num_processes=1")
    done = command("mnist", *flags, "--process_index=0")
    assert_one_line_error(done, "--coordinator_address: expected host:port")


def test_a_path_may_begin_with_the_home_directory(tmp_path):
    home = {**os.environ, "HOME": str(tmp_path)}
    for module, flag in (("predict", "--workdir"), ("compare", "--workdirs")):
        done = command(module, f"{flag}=~/none", env=home)
        assert_one_line_error(done, f"got {tmp_path}/none")


def test_no_checkpoint_to_predict_with(tmp_path):
    done = command("predict", f"--workdir={tmp_path}")
    assert_one_line_error(done, "expected a checkpoint")
    done = command("predict", f"--workdir={tmp_path}/none")
    assert_one_line_error(done, "expected a folder of checkpoints")


def test_index_beyond_the_split(trained):
    done = command("predict", f"--workdir={trained[0]}", "--index=360")
    assert_one_line_error(done, "--index: expected 0 to 359 in the test split")


def test_an_example_of_the_training_split(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    data = digits.load()
    of_train, of_test = (data.split(name).labels[:360] for name in ("train", "test"))
    index = np.flatnonzero(of_train != of_test)[0]
    flags = "--split=train", f"--index={index}"
    done = command("predict", f"--workdir={workdir}", *flags)
    assert f"Label: {of_train[index]}\n" in done.stdout, done.stderr
    assert (workdir / f"train-{index}.png").exists()


def test_image_that_is_none(trained, tmp_path):
    (tmp_path / "digit.png").write_text("no image")
    done = command(
        "predict", f"--workdir={trained[0]}", f"--image={tmp_path}/digit.png"
    )
    assert_one_line_error(done, "--image: expected a PNG or JPEG")
