"""What XLA's compiler for NVIDIA GPUs makes of both kernels' calls, with no GPU here.

JAX's CUDA plugin compiles for a GPU that is described to it, and needs none; `.ci/run`
puts the plugin beside the tests, and nvcc. What is compiled is not run.
"""

import os
import re
import shlex
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from jax.experimental import rnn, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from kinds import trace_layers_anew

from flax_lstm import StackedLSTM, _cudnn_lstm, _persistent_lstm
from flax_lstm.native import library

# JAX asks at its first array whether CUDA is whole, and else forgets the plugin.
if "JAX_SKIP_CUDA_CONSTRAINTS_CHECK" not in os.environ:
    pytest.skip(
        "needs jax-cuda13-plugin and JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1",
        allow_module_level=True,
    )

T, B, I, H = 28, 100, 28, 128  # noqa: E741
# Elements of what cuDNN saves; as no other array has.
KEPT = 2003

# As a machine with an H100, CUDA 13 and cuDNN 9.12 would describe itself.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
}
runtime_version { major: 13 minor: 0 patch: 0 }
dnn_version_info { major: 9 minor: 12 patch: 0 }
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# XLA's names of what is called forward and backward.
CALLS = {
    "cudnn": ("cudnn_rnn_ffi", "cudnn_rnn_bwd_ffi"),
    "native": ("flax_lstm_persistent_forward_keeping", "flax_lstm_persistent_backward"),
}


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """The persistent kernels, compiled by nvcc for an H100 and known to XLA."""
    compiler = library.GPU.compiler.command_line()
    if not shutil.which(compiler[0]):
        pytest.skip("needs CUDA's nvcc")
    with pytest.MonkeyPatch.context() as environment:
        for_h100 = [part for part in compiler if part != "-arch=native"]
        environment.setenv("NVCC", shlex.join([*for_h100, "-arch=sm_90"]))
        environment.setenv("FLAX_LSTM_CACHE_DIR", str(tmp_path_factory.mktemp("loops")))
        library.GPU.build()
        assert library.GPU.is_usable()
        yield


@pytest.fixture(params=CALLS)
def implementation(request):
    if request.param == "native":
        request.getfixturevalue("kernels")
    return request.param


@pytest.fixture
def h100(monkeypatch):
    """Where to compile for; asked without a GPU, neither JAX nor cuDNN knows of it."""
    trace_layers_anew(monkeypatch)
    monkeypatch.setattr(_persistent_lstm, "most_units", lambda: 128)
    monkeypatch.setattr(_cudnn_lstm, "_require_gpu", lambda: None)
    sizes = "compute_rnn_workspace_reserve_space_sizes"
    monkeypatch.setattr(rnn.gpu_rnn, sizes, lambda *_: (1000, KEPT))
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=H100
    )
    return jax.sharding.SingleDeviceSharding(described.devices[0])


def compiled(function, h100, *arguments, **options):
    """XLA's text of the program."""
    jitted = jax.jit(function, in_shardings=h100, out_shardings=h100)
    return jitted.lower(*arguments).compile(compiler_options=options).as_text()


def calls(implementation, text):
    """Of each call, forward and backward: its results, its operands."""
    return [
        re.findall(rf'= (\(.*\)) custom-call\((.*?)\), .*"{target}"', text)
        for target in CALLS[implementation]
    ]


def shapes(lstm, batch_first):
    x = jax.ShapeDtypeStruct((B, T, I) if batch_first else (T, B, I), np.float32)
    return jax.eval_shape(lstm.init, jax.random.key(0), x), x


def of_all(y, h, c):
    return (y**2).sum() + (h * c).sum()


def loss(lstm, variables, x, lengths=None, of=of_all):
    y, (h, c) = lstm.apply(variables, x, seq_lengths=lengths)
    return of(y, h, c)


def of_its_value(value):
    return value, 2 * value


# What is differentiated, and the gradients that are pulled back, out of its value. Some
# are constants, which XLA knows: zeros where a result is not read, or all of them.
PULLED_BACK = {
    "all": (of_all, of_its_value),
    "final_h": (lambda y, h, c: (h[-1] ** 2).sum(), of_its_value),
    "final_c": (lambda y, h, c: (c**2).sum(), of_its_value),
    "last_step": (lambda y, h, c: (y[-1] ** 2).sum(), of_its_value),
    "inner_steps": (lambda y, h, c: (y[3:9, :, 5:] ** 2).sum(), of_its_value),
    "two_constants": (lambda y, h, c: y.sum(), lambda _: (1.0, 2.0)),
    "sum_and_mean": (
        lambda y, h, c: (y.sum(), y.mean()),
        lambda _: ((1.0, 0.0), (0.0, 1.0)),
    ),
    "the_same_of_two_results": (
        lambda y, h, c: (y.sum(), h.sum()),
        lambda value: ((value[0], 0.0), (0.0, value[0])),
    ),
    "two_steps": (
        lambda y, h, c: (y[3].sum(), y[4].sum()),
        lambda _: ((1.0, 0.0), (0.0, 1.0)),
    ),
}


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_arrays_lie_as_they_are_read(batch_first, with_lengths, implementation, h100):
    """Row by row, whatever would suit XLA."""
    lstm = StackedLSTM(
        *(I, H, 2),
        batch_first=batch_first,
        bidirectional=True,
        implementation=implementation,
    )
    lengths = jax.ShapeDtypeStruct((B,), np.int32) if with_lengths else None
    gradient = jax.value_and_grad(partial(loss, lstm), (0, 1))
    text = compiled(gradient, h100, *shapes(lstm, batch_first), lengths)
    # One for the whole stack, or one a layer and direction.
    number = {"cudnn": 1, "native": 4}[implementation]
    forward, backward = calls(implementation, text)
    assert (len(forward), len(backward)) == (number, number)
    for results, operands in forward + backward:
        names = re.findall(r"%([\w.-]+)", operands)
        defined = [re.search(rf"%{re.escape(n)} = (\S+)", text)[1] for n in names]
        found = re.findall(r"\[([\d,]+)\]\{([\d,]+)", " ".join([results, *defined]))
        layouts = [layout for shape, layout in found if "," in shape]
        # Inputs, h_0 and c_0, y, h_n and c_n at least.
        assert len(layouts) >= 6
        assert set(layouts) <= {"2,1,0", "1,0"}, (results, defined)


@pytest.mark.parametrize(
    ("of", "gradients"), PULLED_BACK.values(), ids=PULLED_BACK.keys()
)
def test_calls_backward_for_one_forward_share_nothing_that_cudnn_writes(
    of, gradients, h100
):
    lstm = StackedLSTM(I, H, 2, implementation="cudnn")

    def twice(variables, x):
        value, pullback = jax.vjp(partial(loss, lstm, of=of), variables, x)
        return tuple(map(pullback, gradients(value)))

    text = compiled(twice, h100, *shapes(lstm, batch_first=False))
    forward, backward = calls("cudnn", text)
    assert (len(forward), len(backward)) == (1, 2)
    operands = [re.findall(r"%[\w.-]+", names) for _, names in backward]
    kept = 8  # Behind three gradients, x, h_0, c_0, weights and y.
    assert operands[0][kept] != operands[1][kept]
    assert operands[0][kept - 1] == operands[1][kept - 1]  # y.
    # In place for one of them.
    assert len(copies_of_what_is_kept(text)) == 1


def test_one_call_backward_copies_nothing_that_cudnn_writes(h100):
    lstm = StackedLSTM(I, H, 2, implementation="cudnn")
    gradient = jax.grad(partial(loss, lstm))
    text = compiled(gradient, h100, *shapes(lstm, batch_first=False))
    assert not copies_of_what_is_kept(text)


def copies_of_what_is_kept(text):
    """Instructions that write all of its elements: any but an update in place."""
    called = re.findall(rf"^  %\S+ = f32\[{KEPT}\]\S* (\w[\w-]*)\(", text, re.M)
    updates = re.findall(rf"ROOT \S+ = f32\[{KEPT}\]\S* dynamic-update-slice", text)
    others = [name for name in called if name not in ("parameter", "get-tuple-element")]
    assert others.count("fusion") == len(updates) > 0
    return [name for name in others if name != "fusion"]


def test_a_step_by_the_persistent_kernels_is_started_at_once(kernels, h100, tmp_path):
    """All of it is one of CUDA's graphs, the calls with it."""
    lstm = StackedLSTM(I, H, 2, implementation="native")
    gradient = jax.value_and_grad(partial(loss, lstm))
    arguments = shapes(lstm, batch_first=True)
    compiled(
        *(gradient, h100, *arguments),
        xla_dump_to=str(tmp_path),
        xla_dump_hlo_as_text=True,
    )
    (written,) = tmp_path.glob("*.thunk_sequence_after_thunk_passes.txt")
    lines = written.read_text("utf-8").splitlines()
    kinds = [re.match(r"( *)\d+: (k\w+)", line).groups() for line in lines if line]
    assert [kind for indentation, kind in kinds if not indentation] == [
        "kCommandBuffer"
    ]
    assert sum(kind == "kCustomCall" for _, kind in kinds) == 4


def test_on_a_mesh_of_one_explicit_device_it_is_called(implementation, h100):
    """Sharded arrays have their sharding in their types, which a call does not take."""
    mesh = Mesh([h100._device], ("rows",), (AxisType.Explicit,))
    lstm = StackedLSTM(I, H, 2, implementation=implementation)
    variables, x = shapes(lstm, batch_first=False)

    def on_mesh(array, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(partial(loss, lstm))).lower(
            jax.tree.map(on_mesh, variables), on_mesh(x, None, "rows")
        )
    number = {"cudnn": 1, "native": 2}[implementation]
    for target in CALLS[implementation]:
        assert lowered.as_text().count(f"@{target}(") == number
