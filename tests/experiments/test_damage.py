"""A checkpoint that is not what was written is never loaded."""

import os
import shutil
import subprocess
import threading

import pytest
from commands import assert_one_line_error, assert_same_run, command, train

from experiments.checkpoints import set_aside
from experiments.errors import RunError
from experiments.lock import is_held, sole_use
from experiments.restored import restore
from flax_lstm import load_classifier
from flax_lstm.checkpoint import (
    DamagedCheckpointError,
    checkpoint_steps,
    verify,
    write_manifest,
)

NEWEST = 300
FLAGS = ("--num_epochs=20", "--dropout=0.1")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path):
    path.unlink()


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "copy")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, delete])
def test_every_file_of_a_checkpoint_is_watched(workdir, damage):
    verify(str(workdir), NEWEST)
    files = [p for p in (workdir / str(NEWEST)).rglob("*") if p.is_file()]
    files.append(workdir / f"{NEWEST}.sha256")
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        if not content:
            continue
        damage(path)
        name = str(path.relative_to(workdir))
        with pytest.raises(DamagedCheckpointError) as caught:
            verify(str(workdir), NEWEST)
        # A damaged manifest may look like damage of the file that it speaks of.
        assert str(NEWEST) in str(caught.value)
        assert name in str(caught.value) or path.suffix == ".sha256"
        with pytest.raises(DamagedCheckpointError):
            load_classifier(workdir)
        path.write_bytes(content)
    verify(str(workdir), NEWEST)


def test_an_added_file_and_a_link_are_damage(workdir):
    extra = workdir / str(NEWEST) / "params" / "extra"
    extra.write_text("")
    with pytest.raises(DamagedCheckpointError, match="extra is not listed"):
        verify(str(workdir), NEWEST)
    extra.unlink()
    extra.symlink_to("/etc")
    with pytest.raises(DamagedCheckpointError, match="extra is not a regular file"):
        verify(str(workdir), NEWEST)


def test_the_manifest_is_what_sha256sum_checks(workdir):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum (GNU coreutils)")
    subprocess.run(
        ["sha256sum", "--check", "--quiet", "--strict", f"{NEWEST}.sha256"],
        cwd=workdir,
        check=True,
    )


def payload(workdir, step):
    """The largest file: what Orbax itself has no checksum of."""
    files = (p for p in (workdir / str(step)).rglob("*") if p.is_file())
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.slow
def test_training_goes_back_to_the_newest_sound_checkpoint(trained, workdir):
    path = payload(workdir, NEWEST)
    flip_a_bit(path)
    output = train(workdir, *FLAGS)
    name = path.relative_to(workdir)
    assert f"Not used: step {NEWEST}: {name} is damaged" in output
    assert "Restored: epoch 19, step 285" in output
    assert (workdir / f"damaged-{NEWEST}").is_dir()
    assert_same_run(workdir, trained[0])


def test_a_step_that_is_damaged_twice_is_set_aside_twice(tmp_path):
    for _ in range(2):
        (tmp_path / "7" / "params").mkdir(parents=True)
        (tmp_path / "7.sha256").touch()
        set_aside(str(tmp_path), {7: "7.sha256 is damaged"})
    assert sorted(os.listdir(tmp_path)) == ["damaged-7", "damaged-7-2"]


def test_prediction_refuses_unless_told_a_step(workdir):
    flip_a_bit(payload(workdir, NEWEST))
    done = command("predict", f"--workdir={workdir}")
    assert_one_line_error(done, f"step {NEWEST}: ")
    assert "the newest sound checkpoint is that of --step=285" in done.stderr
    done = command("predict", f"--workdir={workdir}", "--step=285")
    assert done.returncode == 0, done.stderr
    assert "Restored: epoch 19, step 285" in done.stdout


def damage_all(workdir):
    for step in checkpoint_steps(workdir):
        flip_a_bit(payload(workdir, step))


def take_manifests_away(workdir):
    """As who copies the folders of the steps alone."""
    for step in checkpoint_steps(workdir):
        (workdir / f"{step}.sha256").unlink()


def take_checkpoints_away(workdir):
    for step in checkpoint_steps(workdir):
        (workdir / f"{step}.sha256").unlink()
        shutil.rmtree(workdir / str(step))


def take_all_but_one_and_its_manifest_away(workdir):
    *others, last = checkpoint_steps(workdir)
    (workdir / f"{last}.sha256").unlink()
    for step in others:
        shutil.rmtree(workdir / str(step))


@pytest.mark.parametrize(
    "lose",
    [
        damage_all,
        take_manifests_away,
        take_checkpoints_away,
        take_all_but_one_and_its_manifest_away,
    ],
)
def test_no_sound_checkpoint_is_an_error_and_changes_nothing(lose, workdir):
    lose(workdir)
    before = sorted(workdir.rglob("*"))
    metrics = (workdir / "metrics.jsonl").read_bytes()
    done = command("mnist", "--dataset=digits", f"--workdir={workdir}", *FLAGS)
    assert_one_line_error(done, f"no checkpoint in {workdir} is sound")
    assert [p for p in sorted(workdir.rglob("*")) if p.name != ".lock"] == [
        p for p in before if p.name != ".lock"
    ]
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize(
    ("name", "message"),
    [
        # Not yet written.
        (f"{NEWEST}.sha256", rf"{NEWEST}.sha256 is missing"),
        # Removed between two looks at it.
        (f"{NEWEST}/_CHECKPOINT_METADATA", "_CHECKPOINT_METADATA is missing"),
    ],
)
def test_what_a_run_is_writing_and_removing_is_waited_for(name, message, workdir):
    path = workdir / name
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(RunError, match=message):
        restore(str(workdir))
    with sole_use(str(workdir)):
        later = threading.Timer(0.5, lambda: path.write_bytes(content))
        later.start()
        assert restore(str(workdir)).step == NEWEST
    assert not is_held(str(workdir))


def test_a_runs_first_checkpoint_is_waited_for(workdir, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RunError, match=r"^--workdir: expected a checkpoint in"):
        restore(str(empty))
    names = f"{NEWEST}", f"{NEWEST}.sha256"
    with sole_use(str(empty)):
        later = threading.Timer(
            0.5, lambda: [(workdir / name).rename(empty / name) for name in names]
        )
        later.start()
        assert restore(str(empty)).step == NEWEST


@pytest.mark.slow
def test_a_save_that_was_cut_short_is_not_used(trained, workdir):
    (workdir / f"{NEWEST}.sha256").unlink()
    output = train(workdir, *FLAGS)
    assert f"Not used: step {NEWEST}: {NEWEST}.sha256 is missing" in output
    assert_same_run(workdir, trained[0])


def test_a_checkpoint_of_another_format_is_named(workdir):
    config = workdir / str(NEWEST) / "config" / "metadata"
    version_3, version_2 = '"format_version": 3', '"format_version": 2'
    assert version_3 in config.read_text()
    config.write_text(config.read_text().replace(version_3, version_2))
    write_manifest(str(workdir), NEWEST)
    done = command("predict", f"--workdir={workdir}")
    assert_one_line_error(done, "expected a checkpoint of format version 3")
