// The recurrences of persistent.h as XLA calls them; arguments and results are in the
// order of `_persistent_lstm.py`.
//
// The including file launches the kernels: it passes a `launch` with
// launch.operator()<kernel, S>(layer, blocks, shared_floats).

#pragma once

#include <cstdint>

#include "arguments.h"
#include "persistent_backward.h"
#include "persistent_forward.h"
#include "xla/ffi/api/ffi.h"

namespace flax_lstm {

constexpr int kMostUnits = 128;
constexpr int64_t kMostNumbers = INT32_MAX;

enum class Kernel { kForward, kForwardKeeping, kBackward };

// Rows of a block: as few as possible with one block per multiprocessor, at most eight.
inline int rows_of_block(int64_t batch, int64_t processors) {
  int rows = 1;
  while (rows < 8 && batch > rows * processors) rows *= 2;
  return rows;
}

template <Kernel kernel, typename S, typename Launch>
ffi::Error run_shape(const Recurrence& layer, const Launch& launch) {
  constexpr int floats = kernel == Kernel::kBackward ? backward_shared_size<S>()
                                                     : forward_shared_size<S>();
  // What a block can ask for; with weights in shared memory, on some GPUs only.
  constexpr int most_bytes = (S::kInShared ? 227 : 48) * 1024;
  static_assert(floats * sizeof(float) <= most_bytes);
  const int64_t blocks = (layer.batch + S::kRows - 1) / S::kRows;
  return blocks == 0 ? ffi::Error::Success()
                     : launch.template operator()<kernel, S>(layer, blocks, floats);
}

template <Kernel kernel, int rows, typename Launch>
ffi::Error run_rows(const Recurrence& layer, const Launch& launch) {
  if (layer.units <= 32) return run_shape<kernel, Shape<32, rows, 4, 32>>(layer, launch);
  if (layer.units <= 64) return run_shape<kernel, Shape<64, rows, 4, 64>>(layer, launch);
  // Of 255 registers, or 128 with twice the threads, not all are for weights.
  constexpr int sums = rows < 8 ? 8 : 4;
  constexpr int in_registers = rows == 1 ? 216 : rows == 2 ? 200 : rows == 4 ? 152 : 44;
  return run_shape<kernel, Shape<128, rows, sums, in_registers>>(layer, launch);
}

template <Kernel kernel, typename Launch>
ffi::Error run(const Recurrence& layer, int64_t processors, const Launch& launch) {
  if (layer.units > kMostUnits) {
    return ffi::Error::InvalidArgument("flax_lstm: more units than a block can hold");
  }
  // With one more step after the last, which is indexed but never read.
  const int64_t steps = int64_t{layer.steps} + 1;
  if (steps * layer.batch * kGates * layer.units > kMostNumbers) {
    return ffi::Error::InvalidArgument("flax_lstm: array too large for 32-bit indices");
  }
  switch (rows_of_block(layer.batch, processors)) {
    case 1: return run_rows<kernel, 1>(layer, launch);
    case 2: return run_rows<kernel, 2>(layer, launch);
    case 4: return run_rows<kernel, 4>(layer, launch);
    default: return run_rows<kernel, 8>(layer, launch);
  }
}

inline void read_sizes(Recurrence& layer, ffi::AnyBuffer of_steps, ffi::AnyBuffer of_rows) {
  layer.steps = static_cast<int>(of_steps.dimensions()[0]);
  layer.batch = static_cast<int>(of_rows.dimensions()[0]);
  layer.units = static_cast<int>(of_rows.dimensions()[1]);
}

inline Recurrence forward_arguments(bool keeps, bool reverse, ffi::RemainingArgs arguments,
                                    ffi::RemainingRets results) {
  Recurrence layer = {};
  Next next(arguments, results);
  const ffi::AnyBuffer z_x = next.buffer();
  next.read(layer.w_h);
  next.read(layer.bias);
  const ffi::AnyBuffer h_0 = next.buffer();
  read_sizes(layer, z_x, h_0);
  layer.z_x = z_x.typed_data<float>();
  layer.h_0 = h_0.typed_data<float>();
  next.read(layer.c_0);
  layer.valid = next.valid();
  next.write(layer.y);
  next.write(layer.h_n);
  next.write(layer.c_n);
  if (keeps) next.write(layer.to_keep);
  layer.reverse = reverse;
  return layer;
}

inline Recurrence backward_arguments(bool reverse, ffi::RemainingArgs arguments,
                                     ffi::RemainingRets results) {
  Recurrence layer = {};
  Next next(arguments, results);
  next.read(layer.w_h);
  next.read(layer.kept);
  const ffi::AnyBuffer d_y = next.buffer(), d_h_n = next.buffer();
  read_sizes(layer, d_y, d_h_n);
  layer.d_y = d_y.typed_data<float>();
  layer.d_h_n = d_h_n.typed_data<float>();
  next.read(layer.d_c_n);
  layer.valid = next.valid();
  next.write(layer.d_z);
  next.write(layer.d_h_0);
  next.write(layer.d_c_0);
  layer.reverse = reverse;
  return layer;
}

}  // namespace flax_lstm
