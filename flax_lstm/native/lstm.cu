// The recurrences of persistent.h on an NVIDIA GPU.

#include <cuda_runtime.h>

#include <string>

#include "persistent_calls.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using flax_lstm::Kernel;
using flax_lstm::Recurrence;

template <Kernel kernel, typename S>
__global__ void __launch_bounds__(S::kThreads, 1) run_block(const Recurrence layer) {
  extern __shared__ float4 shared[];
  float* floats = reinterpret_cast<float*>(shared);
  if constexpr (kernel == Kernel::kBackward) {
    flax_lstm::run_backward<S>(layer, floats);
  } else {
    flax_lstm::run_forward<S, kernel == Kernel::kForwardKeeping>(layer, floats);
  }
}

ffi::Error error_of(cudaError_t status) {
  if (status == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("flax_lstm: ") + cudaGetErrorString(status));
}

struct Launch {
  cudaStream_t stream;

  template <Kernel kernel, typename S>
  ffi::Error operator()(const Recurrence& layer, int64_t blocks, int floats) const {
    const size_t bytes = floats * sizeof(float);
    const auto* function = reinterpret_cast<const void*>(&run_block<kernel, S>);
    const cudaError_t status = cudaFuncSetAttribute(
        function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (status != cudaSuccess) {
      cudaGetLastError();  // Or the next launch would seem to have failed.
      return error_of(status);
    }
    run_block<kernel, S>
        <<<static_cast<unsigned>(blocks), S::kThreads, bytes, stream>>>(layer);
    return error_of(cudaGetLastError());
  }
};

template <Kernel kernel>
ffi::Error call(cudaStream_t stream, const Recurrence& layer) {
  int device = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (status != cudaSuccess) return error_of(status);
  return flax_lstm::run<kernel>(layer, processors, Launch{stream});
}

ffi::Error forward(cudaStream_t stream, bool reverse, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  return call<Kernel::kForward>(
      stream, flax_lstm::forward_arguments(false, reverse, arguments, results));
}

ffi::Error forward_keeping(cudaStream_t stream, bool reverse,
                           ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return call<Kernel::kForwardKeeping>(
      stream, flax_lstm::forward_arguments(true, reverse, arguments, results));
}

ffi::Error backward(cudaStream_t stream, bool reverse, ffi::RemainingArgs arguments,
                    ffi::RemainingRets results) {
  return call<Kernel::kBackward>(
      stream, flax_lstm::backward_arguments(reverse, arguments, results));
}

}  // namespace

#define FLAX_LSTM_HANDLER(symbol, function)                         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function,                   \
                                ffi::Ffi::Bind()                    \
                                    .Ctx<ffi::PlatformStream<cudaStream_t>>() \
                                    .Attr<bool>("reverse")          \
                                    .RemainingArgs()                \
                                    .RemainingRets(),               \
                                {ffi::Traits::kCmdBufferCompatible})

FLAX_LSTM_HANDLER(FlaxLstmPersistentForward, forward);
FLAX_LSTM_HANDLER(FlaxLstmPersistentForwardKeeping, forward_keeping);
FLAX_LSTM_HANDLER(FlaxLstmPersistentBackward, backward);
