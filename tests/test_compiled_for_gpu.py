"""What XLA's compiler for NVIDIA GPUs makes of cuDNN's calls, with no GPU here.

JAX's CUDA plugin compiles for a GPU that is described to it, and needs none; `.ci/run`
puts the plugin beside the tests. What is compiled is not run.
"""

import os
import re
from functools import partial

import jax
import numpy as np
import pytest
from jax.experimental import rnn, topologies
from kinds import trace_layers_anew

from flax_lstm import StackedLSTM, _cudnn_lstm

# JAX asks at its first array whether CUDA is whole, and else forgets the plugin.
if "JAX_SKIP_CUDA_CONSTRAINTS_CHECK" not in os.environ:
    pytest.skip(
        "needs jax-cuda13-pjrt and JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1",
        allow_module_level=True,
    )

T, B, I, H = 28, 100, 28, 128  # noqa: E741

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


@pytest.fixture
def h100(monkeypatch):
    """Where to compile for; asked, cuDNN says nothing of its sizes without a GPU."""
    trace_layers_anew(monkeypatch)
    monkeypatch.setattr(_cudnn_lstm, "_require_gpu", lambda: None)
    sizes = "compute_rnn_workspace_reserve_space_sizes"
    monkeypatch.setattr(rnn.gpu_rnn, sizes, lambda *_: (1000, 2000))
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=H100
    )
    return jax.sharding.SingleDeviceSharding(described.devices[0])


def compiled(function, h100, *arguments):
    """Of each call of cuDNN's, forward and backward: its results, its operands."""
    jitted = jax.jit(function, in_shardings=h100, out_shardings=h100)
    text = jitted.lower(*arguments).compile().as_text()
    return {
        name: re.findall(rf"= (\(.*\)) custom-call\((.*?)\), .*\"{target}\"", text)
        for name, target in (
            ("forward", "cudnn_rnn_ffi"),
            ("backward", "cudnn_rnn_bwd_ffi"),
        )
    }, text


def shapes(lstm, batch_first):
    x = jax.ShapeDtypeStruct((B, T, I) if batch_first else (T, B, I), np.float32)
    return jax.eval_shape(lstm.init, jax.random.key(0), x), x


def loss(lstm, variables, x, lengths=None):
    y, (h, c) = lstm.apply(variables, x, seq_lengths=lengths)
    return (y**2).sum() + (h * c).sum()


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_arrays_lie_as_cudnn_reads_them(batch_first, with_lengths, h100):
    lstm = StackedLSTM(
        *(I, H, 2), batch_first=batch_first, bidirectional=True, implementation="cudnn"
    )
    lengths = jax.ShapeDtypeStruct((B,), np.int32) if with_lengths else None
    gradient = jax.value_and_grad(partial(loss, lstm), (0, 1))
    calls, text = compiled(gradient, h100, *shapes(lstm, batch_first), lengths)
    assert [len(found) for found in calls.values()] == [1, 1]
    for ((results, operands),) in calls.values():
        names = re.findall(r"%([\w.-]+)", operands)
        defined = [re.search(rf"%{re.escape(n)} = (\S+)", text)[1] for n in names]
        layouts = re.findall(
            r"\[\d+,\d+,\d+\]\{([\d,]+)", " ".join([results, *defined])
        )
        # x, h_0 and c_0, y, h_n and c_n at least.
        assert len(layouts) >= 6
        assert set(layouts) == {"2,1,0"}, (results, defined)


def test_calls_backward_for_one_forward_share_nothing_that_cudnn_writes(h100):
    lstm = StackedLSTM(I, H, 2, implementation="cudnn")

    def twice(variables, x):
        value, pullback = jax.vjp(partial(loss, lstm), variables, x)
        return pullback(value), pullback(2 * value)

    calls, _ = compiled(twice, h100, *shapes(lstm, batch_first=False))
    forward, backward = calls["forward"], calls["backward"]
    assert (len(forward), len(backward)) == (1, 2)
    operands = [re.findall(r"%[\w.-]+", names) for _, names in backward]
    kept = 8  # Behind three gradients, x, h_0, c_0, weights and y.
    assert operands[0][kept] != operands[1][kept]
    assert operands[0][kept - 1] == operands[1][kept - 1]
