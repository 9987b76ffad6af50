"""The GPU's recurrence, run by threads of a CPU: the kernels' own source, compiled.

What this can't show is that a GPU runs it, or how fast.
"""

import ctypes
import dataclasses
import importlib
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beside_fused import (
    assert_close,
    mesh_of_cpus,
    setting,
    slow_but,
    value_and_gradients,
)
from jax.interpreters import ad
from jax.sharding import AxisType, NamedSharding, PartitionSpec as Spec
from kinds import trace_layers_anew
from precision import assert_products_are_precise

from flax_lstm import (
    StackedLSTM,
    _native_primitives,
    _native_reference,
    _persistent_lstm,
    _reference_primitive,
    params_from_torch,
)
from flax_lstm.native import __main__ as native_command, library, machine

SOURCE = pathlib.Path(__file__).parent / "persistent" / "on_cpu.cc"


def compiled(to, *options):
    compiler = library.CPU.compiler.command_line()
    if not shutil.which(compiler[0]):
        pytest.skip(f"the kernels' source needs a C++ compiler, {compiler[0]}")
    native = pathlib.Path(library.__file__).parent
    subprocess.run(
        [
            *(*compiler, "-std=c++20", "-O1", "-pthread", *options),
            *("-I", native, "-isystem", jax.ffi.include_dir(), SOURCE, "-o", to),
        ],
        check=True,
    )
    return to


@pytest.fixture(scope="session")
def primitives(tmp_path_factory):
    """Three as the native ones, that run the kernels on this CPU."""
    path = tmp_path_factory.mktemp("persistent") / "on_cpu.so"
    loaded = ctypes.CDLL(str(compiled(path, "-fPIC", "-shared")))
    for name, symbol in library.GPU.targets.items():
        capsule = jax.ffi.pycapsule(getattr(loaded, symbol))
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")

    def primitive(name, lowering):
        reference = getattr(_native_reference, name)
        target = f"flax_lstm_persistent_{name}"
        made = _reference_primitive.primitive_with_reference(
            f"on_cpu_{name}", reference
        )
        _native_primitives.lower_to_kernel(made, reference, lowering(target), "cpu")
        return made

    forward = primitive("forward", _persistent_lstm.forward_lowering)
    ad.primitive_jvps[forward] = _native_primitives.derivative_of_forward
    backward = primitive("backward", _persistent_lstm.backward_lowering)
    tangents = _reference_primitive.primitive_with_reference(
        "on_cpu_tangents", _native_reference.tangents
    )
    _native_primitives.transpose_to_each_other(tangents, backward)
    return {
        "forward_p": forward,
        "forward_keeping_p": primitive(
            "forward_keeping", _persistent_lstm.forward_lowering
        ),
        "backward_p": backward,
        "tangents_p": tangents,
    }


@pytest.fixture
def on_cpu(primitives, monkeypatch):
    trace_layers_anew(monkeypatch)
    for name, primitive in primitives.items():
        monkeypatch.setattr(_native_primitives, name, primitive)
    for name in ("is_usable", "register"):
        monkeypatch.setattr(library.Library, name, lambda self: True)
    monkeypatch.setattr(_persistent_lstm, "most_units", lambda: 128)
    with jax.default_device(jax.devices("cpu")[0]):  # Also where there is a GPU.
        yield


# Rows of a block: 1, 2, 4, 8 for two processors; units in registers, and in shared
# memory too; sizes at and beside the kernels'.
SIZES = {
    "one": (1, 1, 1, 1),
    "two_blocks": (3, 2, 3, 32),
    "rows_by_two": (3, 3, 5, 7),
    "rows_by_four": (4, 7, 2, 33),
    "rows_by_eight": (3, 11, 3, 20),
    "more_blocks_than_processors": (2, 19, 3, 31),
    "more_registers": (3, 1, 4, 50),
    "more_registers_by_eight": (2, 9, 3, 64),
    "shared_memory": (3, 2, 4, 127),
    "shared_memory_by_two": (3, 3, 4, 65),
    "shared_memory_by_four": (2, 7, 4, 97),
    "shared_memory_by_eight": (2, 9, 3, 100),
    "all_units_of_a_block": (2, 3, 2, 128),
}


DEFAULT = ("rows_by_two", "rows_by_four", "shared_memory")


@pytest.mark.parametrize("lengths", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sizes", slow_but(SIZES, DEFAULT))
def test_results_and_gradients_are_the_fused_ones(sizes, lengths, on_cpu):
    kernels, fused, arguments = setting(*sizes, lengths=lengths, bidirectional=True)
    text = value_and_gradients(kernels).lower(*arguments).as_text()
    assert "@flax_lstm_persistent_forward_keeping(" in text
    assert "@flax_lstm_persistent_backward(" in text
    got = value_and_gradients(kernels)(*arguments)
    assert_close(got, value_and_gradients(fused)(*arguments))


def test_without_a_derivative_nothing_is_kept(on_cpu):
    kernels, fused, arguments = setting(4, 3, 5, 40, num_layers=2)
    assert (
        "@flax_lstm_persistent_forward(" in jax.jit(kernels).lower(*arguments).as_text()
    )
    assert_close(jax.jit(kernels)(*arguments), jax.jit(fused)(*arguments))


def test_tanh_has_all_digits(on_cpu):
    """As 2·σ(2·x) - 1 would not where x is small."""
    size = np.logspace(-6, 1, 200, dtype=np.float32)
    x = np.concatenate([-size, size])[None, :, None]
    zeros, i, g, o = np.zeros(4, np.float32), 0, 2, 3
    weight, bias = zeros.copy(), zeros.copy()
    weight[g] = 1  # So c = tanh x and h = tanh c, with open gates:
    bias[[i, o]] = 100
    params = params_from_torch(
        {
            "weight_ih_l0": weight[:, None],
            "weight_hh_l0": zeros[:, None],
            "bias_ih_l0": bias,
            "bias_hh_l0": zeros,
        }
    )
    stack = StackedLSTM(1, 1, implementation="native")
    _, (h, c) = jax.jit(stack.apply)({"params": params}, x)
    expected = np.tanh(x.astype(np.float64))
    # 2.5 times float32's epsilon.
    np.testing.assert_allclose(c, expected, rtol=3e-7)
    np.testing.assert_allclose(h, np.tanh(expected), rtol=3e-7)


def test_more_numbers_than_an_index_counts_are_fused(on_cpu):
    kernels, _, _ = setting(1, 1, 1, 128)
    stack = StackedLSTM(1, 128)

    def text(batch):
        x = jax.ShapeDtypeStruct((2**10, batch, 1), jnp.float32)
        hx = (jax.ShapeDtypeStruct((1, batch, 128), jnp.float32),) * 2
        variables = jax.eval_shape(stack.init, jax.random.key(0), x)
        return jax.jit(kernels).lower(variables, x, hx).as_text()

    assert "persistent" in text(2**12 - 4)
    assert "persistent" not in text(2**12 - 3)


def test_shard_map_has_the_kernels_on_every_device(on_cpu):
    kernels, _, (variables, x, hx) = setting(3, 8, 2, 5)
    mesh = mesh_of_cpus()
    by_rows = Spec(None, "rows")

    def shard(variables, x, hx):
        return jax.grad(lambda *a: kernels(*a)[0])(variables, x, hx)

    spread = jax.jit(
        jax.shard_map(
            shard, mesh=mesh, in_specs=(Spec(), by_rows, by_rows), out_specs=Spec()
        )
    )
    assert "@flax_lstm_persistent_backward(" in spread.lower(variables, x, hx).as_text()
    assert_close(spread(variables, x, hx), jax.jit(shard)(variables, x, hx))


def test_an_explicit_mesh_of_one_device_has_them(on_cpu):
    kernels, _, (variables, x, hx) = setting(3, 4, 2, 5)
    gradient = value_and_gradients(kernels)
    expected = gradient(variables, x, hx)
    mesh = jax.make_mesh(
        (1,), ("rows",), (AxisType.Explicit,), devices=jax.devices("cpu")[:1]
    )
    with jax.set_mesh(mesh):
        everywhere = jax.device_put(variables, NamedSharding(mesh, Spec()))
        rows = jax.device_put((x, hx), NamedSharding(mesh, Spec(None, "rows")))
        assert (
            "@flax_lstm_persistent_backward("
            in gradient.lower(everywhere, *rows).as_text()
        )
        got = gradient(everywhere, *rows)
    assert_close(jax.tree.map(np.asarray, got), expected)


def test_auto_does_not_take_them(on_cpu):
    """Though it would take a CPU's loops for as many rows and steps."""
    _, _, (variables, x, hx) = setting(3, 2, 3, 5)
    stack = StackedLSTM(3, 5)
    assert stack.implementation == "auto"
    assert "on_cpu_forward" in str(jax.make_jaxpr(stack.apply)(variables, x, hx))
    text = jax.jit(stack.apply).lower(variables, x, hx).as_text()
    assert "persistent" not in text


def test_where_xla_divides_the_work_they_are_not_called(on_cpu):
    kernels, _, arguments = setting(3, 4, 2, 5)
    gradient = value_and_gradients(kernels)
    expected = gradient(*arguments)
    everywhere = NamedSharding(mesh_of_cpus(), Spec())
    arguments = jax.device_put(arguments, everywhere)
    assert "persistent" not in gradient.lower(*arguments).as_text()
    assert_close(gradient(*arguments), expected)


def test_a_precision_chosen_where_a_layer_is_traced_is_kept(on_cpu):
    kernels, _, (variables, x, hx) = setting(3, 2, 4, 5)
    assert_products_are_precise(lambda *some: kernels(*some, hx)[0], variables, x)


@pytest.mark.skipif(
    not any(device.platform == "gpu" for device in jax.devices()),
    reason="needs an NVIDIA GPU",
)
@pytest.mark.parametrize("batch", [100, 200, 400, 600])
@pytest.mark.parametrize("units", [20, 50, 128])
def test_on_a_gpu(units, batch, native):
    kernels, fused, arguments = setting(5, batch, 9, units, lengths=True, num_layers=2)
    with jax.default_matmul_precision("highest"):
        text = value_and_gradients(kernels).lower(*arguments).as_text()
        assert "@flax_lstm_persistent_backward(" in text
        run = value_and_gradients(kernels)
        for _ in range(3):  # The second is recorded as a CUDA graph, which is replayed.
            got = run(*arguments)
        assert_close(got, value_and_gradients(fused)(*arguments))


@pytest.mark.parametrize(
    ("capability", "units"),
    [("8.0", 64), ("8.9", 64), ("9.0", 128), ("10.0", 128), ("12.0", 64)],
)
def test_a_blocks_shared_memory_limits_the_units(capability, units, monkeypatch):
    gpu = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda kind: [gpu])
    assert _persistent_lstm.most_units() == units


@pytest.fixture
def text_for_cuda(monkeypatch):
    """Makes a layer's program for CUDA; a GPU and its kernels seem to be there."""
    trace_layers_anew(monkeypatch)
    for name in ("is_usable", "register"):
        monkeypatch.setattr(library.Library, name, lambda self: True)
    gpu = types.SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(jax, "devices", lambda kind: [gpu])
    kernels, _, arguments = setting(2, 2, 3, 5)

    def text():
        traced = jax.jit(lambda *arguments: kernels(*arguments)).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    assert "persistent" in text()
    return text


def test_a_program_for_a_gpu_that_is_not_here_is_fused(text_for_cuda, monkeypatch):
    """Its shared memory is unknown."""

    def no_gpu(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "devices", no_gpu)
    assert "persistent" not in text_for_cuda()


def test_kernels_that_are_not_compiled_are_not_called(text_for_cuda, monkeypatch):
    def not_compiled(loops):
        raise ValueError(f"{loops.implementation} is not compiled")

    monkeypatch.setattr(library.Library, "register", not_compiled)
    assert "persistent" not in text_for_cuda()


def test_more_units_than_a_block_holds_are_fused(on_cpu):
    kernels, fused, arguments = setting(2, 2, 3, 129)
    text = value_and_gradients(kernels).lower(*arguments).as_text()
    assert "persistent" not in text
    assert_close(
        value_and_gradients(kernels)(*arguments), value_and_gradients(fused)(*arguments)
    )


@pytest.mark.slow
def test_threads_wait_where_they_must(tmp_path):
    """A thread sanitizer watches every access of both kernels."""
    program = compiled(tmp_path / "races", "-DWATCHED", "-fsanitize=thread", "-g")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


@pytest.mark.slow
def test_nothing_is_touched_beside_an_array(tmp_path):
    """Nor beside a block's shared memory, by a sanitizer of addresses."""
    program = compiled(tmp_path / "bounds", "-DWATCHED", "-fsanitize=address", "-g")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nvcc_may_be_the_one_that_jax_was_installed_with(tmp_path, monkeypatch):
    program = tmp_path / "of jax" / "nvidia" / "cu13" / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert library.GPU.compiler.command_line() == ["nvcc", "-arch=native"]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "of jax")])
    importlib.invalidate_caches()
    libraries = f"-L{tmp_path / 'of jax' / 'nvidia' / 'cu13' / 'lib'}"
    assert library.GPU.compiler.command_line() == [
        str(program),
        libraries,
        "-arch=native",
    ]
    monkeypatch.setenv("PATH", str(program.parent))
    assert library.GPU.compiler.command_line() == ["nvcc", "-arch=native"]


def test_kernels_for_no_gpu_are_not_compiled(monkeypatch, capsys):
    """nvcc would take the oldest there is, and nobody would look for its file."""
    monkeypatch.setattr(sys, "argv", ["native", "--gpu"])
    monkeypatch.setattr(library, "GPU", dataclasses.replace(library.GPU, made_for=str))
    monkeypatch.delenv("NVCC", raising=False)
    assert native_command.main() == 1
    assert capsys.readouterr().err.startswith(
        "--gpu: expected a machine with an NVIDIA"
    )


def test_kernels_for_another_gpu_are_an_error(tmp_path, monkeypatch):
    """nvcc goes on where it finds no GPU, as in some containers, for an old one."""
    nvcc = tmp_path / "nvcc"
    warning = (
        "nvcc warning : Cannot find valid GPU for '-arch=native', default arch is used"
    )
    nvcc.write_text(f'#!/bin/sh\necho "{warning}" >&2\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("NVCC", f"{nvcc} -arch=native")
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", str(tmp_path / "loops"))
    advice = f"(?s)finds this machine's GPU, .*NVCC='{nvcc} -arch=sm_90' for an H100"
    with pytest.raises(library.BuildError, match=advice):
        library.GPU.build()
    assert not library.GPU.path().exists()


def test_which_gpus_there_are_is_the_drivers_word(tmp_path, monkeypatch):
    """By its folder, or by its program in a container without that."""
    monkeypatch.setattr(machine, "_GPUS_OF_DRIVER", tmp_path / "gpus")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library.GPU.made_for() == ""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA B200\necho NVIDIA A100\n")
    program.chmod(0o755)
    assert library.GPU.made_for() == "NVIDIA A100\nNVIDIA B200"
    program.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert library.GPU.made_for() == ""
    for number, model in enumerate(("H200", "H100")):
        folder = tmp_path / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t NVIDIA {model}\nIRQ: {number}\n"
        )
    assert library.GPU.made_for() == "Model: \t NVIDIA H100\nModel: \t NVIDIA H200"


@pytest.mark.slow
def test_the_gpus_compiler_takes_it_and_keeps_weights_in_registers(tmp_path):
    compiler = library.GPU.compiler.command_line()
    if not shutil.which(compiler[0]):
        pytest.skip("needs CUDA's nvcc")
    native = pathlib.Path(library.__file__).parent
    done = subprocess.run(
        [
            *(part for part in compiler if part != "-arch=native"),
            *("-arch=sm_90", "-Xptxas=-v", *library.GPU.compiler.options),
            *("-isystem", jax.ffi.include_dir(), native / library.GPU.source),
            *("-o", tmp_path / "lstm.so"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", done.stderr)]
    assert len(spilled) == 36  # Three kernels by four numbers of rows by three sizes.
    # Some of what is read ahead, of the largest; a thread's weights would be 176 bytes
    # and more beside it.
    assert max(spilled) <= 96, done.stderr
    shapes = re.findall(r"Compiling entry .*ShapeILi(\d+)ELi\d+ELi(\d+)", done.stderr)
    registers = re.findall(r"Used (\d+) registers", done.stderr)
    for (units, sums), number in zip(shapes, registers, strict=True):
        threads = 16 * int(units) // int(sums)
        assert threads * int(number) <= 2**16  # Or no block could be started.
