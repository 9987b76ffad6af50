// What the forward and the backward loop of a layer have in common.
//
// Axes: T time, B batch, I inputs, H units, four gates in the order i, f, g, o. All
// arrays are dense, the last axis contiguous.

#pragma once

#include <cstdint>
#include <memory>

#include "vectors.h"

namespace flax_lstm {

constexpr int kGates = 4;
// Columns of a product that are summed at once, for kRows rows.
constexpr int64_t kPanel = kGates * kLanes;

// One array a gate, as the parameters are.
using Gates = const float* [kGates];
using GateGradients = float* [kGates];

// What the derivative needs of every step; (T, B, H) each.
enum Kept { kI, kF, kG, kO, kC, kKept };  // c is that which the step started from.

struct Layer {
  int64_t steps, batch, inputs, units;
  bool reverse;
  const bool* valid;  // (T, B), or null if every step counts.
  // How many threads, and whether they share the units of all rows, which costs a
  // meeting at every step, or the rows.
  int64_t threads;
  bool by_units;

  // The time of the s-th step.
  int64_t time(int64_t s) const { return reverse ? steps - 1 - s : s; }

  bool counts(int64_t t, int64_t row) const {
    return valid == nullptr || valid[t * batch + row];
  }

  bool has_large_weights() const {
    constexpr int64_t kLargeBytes = 1 << 19;
    const int64_t bytes = sizeof(float) * kGates * units * (inputs + units);
    return bytes > kLargeBytes;
  }

  // With few rows a thread and more weights than its own cache holds, reading them is
  // what costs: then each thread reads its units' weights only.
  void share_out(int64_t available) {
    constexpr int64_t kFewRows = 24;
    constexpr int64_t kLeastRows = 8;
    by_units = available > 1 && batch < kFewRows * available && has_large_weights();
    const int64_t most = by_units ? available : batch / kLeastRows;
    threads = most < available ? most : available;
    if (threads < 1) threads = 1;
  }
};

inline int64_t divided_up(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// Aligned numbers without a first value.
class Scratch {
 public:
  explicit Scratch(int64_t count) : numbers_(new float[count + kAlignment]) {}

  float* get() const {
    constexpr uintptr_t mask = kAlignment * sizeof(float) - 1;
    return reinterpret_cast<float*>(
        (reinterpret_cast<uintptr_t>(numbers_.get()) + mask) & ~mask);
  }

 private:
  static constexpr int64_t kAlignment = 16;
  std::unique_ptr<float[]> numbers_;
};

}  // namespace flax_lstm
