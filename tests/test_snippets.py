"""The snippets of the guide and of the README run, and what they assert holds."""

import inspect
import os
import re
import subprocess
import sys
import textwrap

import pytest
from snippets import ROOT, sections

import flax_lstm

pytest.importorskip("torch", reason="torch is the judge in the guide")

SETUP, *GUIDE = sections(ROOT / "docs" / "guide.md")
README = sections(ROOT / "README.md")

# What a section needs that runs in a process of its own, in a folder with a trained
# model: the number of devices can't change any more in the process of these tests.
ALONE = ("jax_num_cpu_devices", "load_classifier(")

# What each section of the README takes as given.
GIVEN = {
    "flax_lstm": """
        import flax_lstm, jax, jax.numpy as jnp, torch
        x = torch.ones(4, 9, 28)
        """,
    "Torch weights, both ways": """
        import safetensors.torch
        torch_lstm = torch.nn.LSTM(28, 128, num_layers=2)
        safetensors.torch.save_file(torch_lstm.state_dict(), "lstm.safetensors")
        torch.save(torch_lstm.state_dict(), "model.pth")
        """,
    "Restore and predict": """
        import pathlib, numpy as np
        pathlib.Path("runs/mnist-l2-h128-b100-lr0.001-seed0").symlink_to(
            "digits-l2-h128-b100-lr0.001-seed0")
        images = np.zeros((3, 8, 8), np.uint8)
        from experiments import artifact, restored
        trained = restored.restore("runs/digits-l2-h128-b100-lr0.001-seed0")
        artifact.export_classifier(trained).write("classifier.jaxexport")
        """,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with runs/digits-…, as a command in it would leave it."""
    folder = tmp_path_factory.mktemp("trained")
    workdir = folder / "runs" / "digits-l2-h128-b100-lr0.001-seed0"
    run_python(
        ROOT,
        *("-m", "experiments.mnist", "--dataset=digits", "--num_epochs=1"),
        f"--workdir={workdir}",
    )
    return folder


def run_python(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def is_alone(section):
    return any(name in section.code for name in ALONE)


def named(chosen):
    return [pytest.param(section, id=section.heading) for section in chosen]


@pytest.mark.parametrize("section", named(s for s in GUIDE if not is_alone(s)))
def test_guide(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    SETUP.run(names)
    section.run(names)


@pytest.mark.slow
@pytest.mark.parametrize("section", named(s for s in GUIDE if is_alone(s)))
def test_guide_in_a_process_of_its_own(section, trained):
    run_python(trained, "-c", f"{SETUP.code}\n{section.code}")


@pytest.mark.slow
def test_readme(trained):
    """All its sections in their order, in one process."""
    headings = {section.heading for section in README}
    assert set(GIVEN) <= headings
    given = {heading: textwrap.dedent(code) for heading, code in GIVEN.items()}
    code = [f"{given.get(s.heading, '')}\n{s.code}" for s in README]
    run_python(trained, "-c", "\n".join(code))


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs" / "reference.md").read_text()
    listed = set(re.findall(r"^\.\. (?:auto\w+|data):: (\w+)$", reference, re.M))
    public = {
        name
        for name, value in vars(flax_lstm).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert listed == public
