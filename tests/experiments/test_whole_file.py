"""Files are written whole or not at all, and only where there is a file or nothing."""

import os
import signal
import subprocess
import sys

import pytest

from experiments.errors import RunError
from experiments.metrics import MetricsFile
from experiments.whole_file import replacing, require_writable, write_whole


def write_all(paths, fails):
    with replacing(*map(str, paths)) as temporaries:
        for temporary in temporaries:
            with open(temporary, "wb") as file:
                file.write(b"new")
        if fails:
            raise OSError(28, "No space left on device")


def test_all_of_them_or_none(tmp_path):
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        path.write_bytes(b"old")
    with pytest.raises(RunError, match=r"^can't write .*one and .*two: No space"):
        write_all(paths, fails=True)
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]
    write_all(paths, fails=False)
    assert [path.read_bytes() for path in paths] == [b"new", b"new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_files_of_others_and_other_processes_are_left_alone(tmp_path):
    """Two commands may write one path at a time: either whole one is there, then."""
    path, beside = tmp_path / "one", tmp_path / "one.tmp"
    beside.write_bytes(b"precious")
    with replacing(str(path)) as (first,):
        with replacing(str(path)) as (second,):
            for temporary in (first, second):
                with open(temporary, "wb") as file:
                    file.write(temporary.encode())
        assert path.read_bytes() == second.encode()
    assert path.read_bytes() == first.encode()
    assert beside.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one.tmp"]


def test_ctrl_c_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = """if True:
        import os, signal, sys
        from experiments import command_line
        from experiments.whole_file import replacing

        def main(path):
            with replacing(path) as (temporary,):
                with open(temporary, "wb") as file:
                    file.write(b"new")
                os.kill(os.getpid(), signal.SIGINT)

        path = sys.argv[1]
        sys.argv = ["program"]
        command_line.run(lambda: main(path))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_stays_one(tmp_path):
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole({str(link): b"new"})
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert len(list(target.parent.iterdir())) == 1


def test_a_folder_to_be_is_no_file(tmp_path):
    with pytest.raises(RunError, match=r"^expected the path of a file.*new/$"):
        require_writable(f"{tmp_path}/new/")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_what_is_no_file_is_not_replaced(make, tmp_path):
    path = str(tmp_path / "there")
    make(path)
    before = os.stat(path)
    for write in (lambda: write_whole({path: b"new"}), lambda: require_writable(path)):
        with pytest.raises(RunError, match=r"expected the path of a file.*there$"):
            write()
    assert os.path.samestat(before, os.stat(path))
    assert os.listdir(tmp_path) == ["there"]


@pytest.fixture
def synced(monkeypatch):
    """What was on the disk of each file, by its number, when that was waited for."""
    contents, fsync = {}, os.fsync

    def note(number):
        fsync(number)
        status = os.fstat(number)
        contents[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", note)
    return contents


def test_a_file_is_on_the_disk_when_it_takes_the_place_of_the_old_one(synced, tmp_path):
    path = tmp_path / "file"
    write_whole({str(path): b"new"})
    assert synced[path.stat().st_ino] == len(b"new")


def test_a_row_of_metrics_is_on_the_disk_before_its_checkpoint(synced, tmp_path):
    file = MetricsFile(str(tmp_path), restored_epoch=0)
    file.append({"epoch": 1})
    status = (tmp_path / "metrics.jsonl").stat()
    assert synced[status.st_ino] == status.st_size > 0
