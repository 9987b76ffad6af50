// The GPU's recurrences as calls of XLA:CPU, see cuda_on_cpu.h. With WATCHED a program
// instead, for a sanitizer of threads or of addresses.

#include <algorithm>

#include "cuda_on_cpu.h"
// Behind what it needs of CUDA.
#include "persistent_calls.h"

using flax_lstm::Kernel;
using flax_lstm::Recurrence;

namespace ffi = xla::ffi;

namespace {

struct Launch {
  template <Kernel kernel, typename S>
  ffi::Error operator()(const Recurrence& layer, int64_t blocks, int floats) const {
    if (blocks == 0) return ffi::Error::Internal("a GPU takes one block or more");
    run_blocks(blocks, S::kThreads, floats, [&](float* shared) {
      if constexpr (kernel == Kernel::kBackward) {
        flax_lstm::run_backward<S>(layer, shared);
      } else {
        flax_lstm::run_forward<S, kernel == Kernel::kForwardKeeping>(layer, shared);
      }
    });
    return ffi::Error::Success();
  }
};

// As on a GPU with so many processors: rows of a block follow from it.
constexpr int64_t kProcessors = 2;

template <Kernel kernel>
ffi::Error call(const Recurrence& layer) {
  return flax_lstm::run<kernel>(layer, kProcessors, Launch());
}

ffi::Error forward(bool reverse, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  return call<Kernel::kForward>(
      flax_lstm::forward_arguments(false, reverse, arguments, results));
}

ffi::Error forward_keeping(bool reverse, ffi::RemainingArgs arguments,
                           ffi::RemainingRets results) {
  return call<Kernel::kForwardKeeping>(
      flax_lstm::forward_arguments(true, reverse, arguments, results));
}

ffi::Error backward(bool reverse, ffi::RemainingArgs arguments,
                    ffi::RemainingRets results) {
  return call<Kernel::kBackward>(
      flax_lstm::backward_arguments(reverse, arguments, results));
}

}  // namespace

#define HANDLER(symbol, function)                                                 \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                  \
      symbol, function,                                                           \
      ffi::Ffi::Bind().Attr<bool>("reverse").RemainingArgs().RemainingRets())

HANDLER(FlaxLstmPersistentForward, forward);
HANDLER(FlaxLstmPersistentForwardKeeping, forward_keeping);
HANDLER(FlaxLstmPersistentBackward, backward);

#ifdef WATCHED

bool fails(int batch, int units) {
  constexpr int kSteps = 3;  // Enough to write, read and write again either buffer.
  std::vector<std::vector<float>> arrays;
  const auto numbers = [&](int count) {
    arrays.emplace_back(count, 0.1f);
    return arrays.back().data();
  };
  const int in_state = batch * units, in_steps = kSteps * in_state;
  Recurrence layer = {};
  layer.steps = kSteps;
  layer.batch = batch;
  layer.units = units;
  for (const float*& w : layer.w_h) w = numbers(units * units);
  for (const float*& bias : layer.bias) bias = numbers(units);
  layer.z_x = numbers(4 * in_steps);
  for (const float** array : {&layer.h_0, &layer.c_0, &layer.d_h_n, &layer.d_c_n}) {
    *array = numbers(in_state);
  }
  for (float** array : {&layer.h_n, &layer.c_n, &layer.d_h_0, &layer.d_c_0}) {
    *array = numbers(in_state);
  }
  const auto valid = std::make_unique<bool[]>(kSteps * batch);
  std::fill_n(valid.get(), kSteps * batch, true);
  layer.valid = valid.get();
  layer.y = numbers(in_steps);
  layer.d_y = numbers(in_steps);
  layer.d_z = numbers(4 * in_steps);
  for (int n = 0; n < 5; ++n) layer.kept[n] = layer.to_keep[n] = numbers(in_steps);
  return call<Kernel::kForwardKeeping>(layer).failure() ||
         call<Kernel::kBackward>(layer).failure();
}

// With parts of eight sums, and of four: in registers, and for eight rows. Blocks of one
// row have threads that hold none, and another block beside them. For no row there is no
// block.
int main() {
  return fails(7, 70) || fails(7, 40) || fails(9, 70) || fails(2, 70) || fails(2, 40) ||
         fails(0, 40);
}

#endif
