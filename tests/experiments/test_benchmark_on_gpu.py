"""What the benchmark does where JAX says that it is on a GPU; there need not be one."""

import contextlib
import os
import sys
import types

import jax
import pytest

from experiments.benchmark import (
    child,
    compiling,
    contenders,
    largest_product,
    run,
    sections,
    summary,
)
from experiments.benchmark.flax_rnn import FlaxRNN
from experiments.benchmark.ours import Ours, has_native_loops
from experiments.benchmark.report import Comparison, Report
from experiments.benchmark.sizes import NOTES
from experiments.benchmark.timing import Timing
from flax_lstm.native import library


@pytest.fixture
def on_gpu(monkeypatch):
    """JAX says that it is on a GPU, for which the kernel is compiled."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(library.Library, "is_usable", lambda self: True)
    monkeypatch.setattr(contenders, "has_torch", lambda: True)


def test_on_a_gpu_ours_comes_in_every_implementation(on_gpu, monkeypatch):
    assert not contenders._one_device()
    by_name = contenders.implementations()
    assert set(by_name.values()) == {"auto", "scan", "cudnn", "native"}
    for steps in (1, contenders.STEPS_PER_CALL):
        assert {
            (name, one.steps_per_call)
            for name, one in contenders._on_gpu(steps).items()
        } == {(name, steps) for name in by_name if name != contenders.OURS}
    monkeypatch.setattr(library.Library, "is_usable", lambda self: False)
    assert set(contenders.implementations().values()) == {"auto", "scan", "cudnn"}


def test_on_a_gpu_memory_is_kept_anyhow_and_torch_is_tuned(on_gpu):
    pytest.importorskip("torch", reason="torch is one of the contenders")
    found = contenders.alone()
    assert not any(entry.keeps_memory for entry in found.values())
    assert contenders.TORCH_TUNED in found
    assert not {
        contenders.OURS_FUSED,
        contenders.OURS_DEFAULT_MALLOC,
        contenders.FLAX_KEPT,
    } & set(found)
    chunked = [one for name, one in found.items() if "steps a call" in name]
    assert len(chunked) == len(contenders._CHUNKED)
    assert {one.contender.steps_per_call for one in chunked} == {10}


def test_the_kernel_is_compared_where_it_holds_all_units(monkeypatch):
    monkeypatch.setattr(contenders, "most_units", lambda: 64)
    for name in (contenders.OURS_KERNEL, contenders.OURS_KERNEL_CHUNKED):
        assert contenders.serves(name, NOTES._replace(hidden=64))
        assert not contenders.serves(name, NOTES._replace(hidden=65))
    assert contenders.serves(contenders.OURS_CUDNN, NOTES)


def test_of_several_gpus_one_is_used(on_gpu, monkeypatch):
    gpus = [types.SimpleNamespace(platform="gpu")] * 2
    monkeypatch.setattr(jax, "local_devices", lambda: gpus)
    monkeypatch.setattr(jax, "make_mesh", lambda shape, *_, **__: shape)
    assert Ours("scan", all_devices=True)._mesh(NOTES) == (1,)
    assert not has_native_loops()


@pytest.fixture
def compared(monkeypatch):
    """What sections would compare: none of it is run."""
    seen = []

    @contextlib.contextmanager
    def made(make, *args):
        yield (make, args)

    def alone(section, names, kind, sizes, seconds, processes=1):
        return section, processes

    def of_all(section, work, works, *_, **__):
        seen.append([*works])
        return section, 1

    monkeypatch.setattr(sections, "_alone", alone)
    monkeypatch.setattr(sections, "compare", of_all)
    monkeypatch.setattr(sections, "working", made)
    for name in ("can_pin", "can_keep", "can_measure"):
        monkeypatch.setattr(sections, name, lambda: True)
    monkeypatch.setattr(sections, "usable_cores", lambda: 2)
    monkeypatch.setattr(sections, "on_one_core", contextlib.nullcontext)
    return seen


def test_a_gpu_is_not_asked_for_one_core_or_for_more_processes(on_gpu, compared):
    found = list(sections.in_own_processes(1))
    assert {processes for _, processes in found} == {1}
    assert {section for section, _ in found} == {
        sections.TRAINING_ALONE,
        sections.INFERENCE_ALONE,
        sections.LARGEST_PRODUCT,
    }


def test_a_gpus_epoch_is_that_of_all_but_our_scan(on_gpu, compared):
    list(sections.whole_epoch(1))
    assert compared == [
        [
            contenders.OURS,
            contenders.OURS_CUDNN,
            contenders.OURS_KERNEL,
            contenders.TORCH,
        ]
    ]


def test_a_run_leaves_a_gpus_memory_to_every_process(tmp_path, monkeypatch):
    """JAX would take most of it at its start."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)

    def part():
        assert os.environ[name] == "false"
        yield Comparison("import", "a new process", "s", {"ours": 1.0})

    monkeypatch.setattr(run, "PARTS", {"first": part})
    run.run(["first"], str(tmp_path / "result"))


def test_a_gpus_memory_is_not_measured(on_gpu, compared, monkeypatch):
    monkeypatch.setattr(sections, "_memory", lambda: iter(["memory"]))
    monkeypatch.setattr(sections, "import_seconds", lambda repeats: 1.0)
    monkeypatch.setattr(Ours, "compiling", lambda self, sizes: None)
    monkeypatch.setattr(FlaxRNN, "compiling", lambda self, sizes: None)
    assert "memory" not in list(sections.costs(1))


def test_the_largest_product_is_larger_on_a_gpu(on_gpu):
    assert largest_product.size_here() == largest_product.GPU_SIZE


@pytest.mark.parametrize(
    ("precision", "in_tf32"), [("default", True), ("high", True), ("highest", False)]
)
def test_torch_is_as_precise_as_jax_on_a_gpu(precision, in_tf32, on_gpu, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is one of the contenders")
    from experiments.benchmark.torch_lstm import device_matching_jax

    cudnn, matmul = types.SimpleNamespace(), types.SimpleNamespace()
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="expected a build with CUDA"):
        device_matching_jax()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", precision)
    try:
        assert device_matching_jax() == "cuda"
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (in_tf32, in_tf32)


def test_torchs_work_on_a_gpu_is_waited_for(monkeypatch):
    pytest.importorskip("torch", reason="torch is one of the contenders")
    from experiments.benchmark.torch_lstm import TorchLSTM

    lstm, done = TorchLSTM(threads=1), []
    cuda = sys.modules["torch"].cuda
    monkeypatch.setattr(cuda, "synchronize", lambda: done.append("waited"))
    for device in ("cpu", "cuda"):
        lstm._run(device, lambda: done.append("worked"))
    assert done == ["worked", "worked", "waited"]


def works_if_turns_are_taken(path):
    assert compiling._turns == path
    return lambda: None


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_on_a_gpu_the_processes_compile_in_turn(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    path = child._turns().name if platform == "gpu" else None
    with child.working(works_if_turns_are_taken, path) as calls:
        assert calls(1) >= 0


def test_a_summary_has_the_kernels_beside_torch():
    def timings(*seconds):
        names = (
            sections.OURS,
            sections.TORCH,
            sections.OURS_CUDNN,
            sections.OURS_KERNEL,
        )
        pairs = zip(names, seconds, strict=True)
        return {name: Timing((value, value)) for name, value in pairs}

    chunked = {
        contenders._CHUNKED[name]: timing
        for name, timing in timings(1.0, 10.0, 3.0, 4.0).items()
    }
    all_timings = timings(1.0, 10.0, 5.0, 6.0) | chunked
    values = {name: timing.median for name, timing in all_timings.items()}
    section, work = sections.TRAINING_ALONE, str(NOTES)
    step = Comparison(section, work, "ms", values, timings=all_timings)
    (whole,) = summary.tables(Report({}, [step]))
    head, _, *rows = whole.splitlines()
    assert head.endswith("| by cuDNN / torch | by the kernel / torch |")
    assert [row.split(" | ")[-2:] for row in rows] == [
        ["0.50", "0.60 |"],
        ["0.30", "0.40 |"],
    ]
