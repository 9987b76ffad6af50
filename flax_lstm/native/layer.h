// What the forward and the backward loops of a layer have in common.
//
// Axes: T time, B batch, I inputs, H units, four gates: an LSTM's in the order i, f, g, o;
// for a GRU's see cells.h. All arrays are dense, the last axis contiguous.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "phases.h"
#include "vectors.h"

namespace flax_lstm {

constexpr int kGates = 4;
constexpr unsigned kAllGates = (1 << kGates) - 1;  // A set of them, a bit each.
// Columns of a product that are summed at once, for kRows rows.
constexpr int64_t kPanel = kGates * kLanes;

// One array per gate, as in the parameters.
using Gates = const float* [kGates];
using GateGradients = float* [kGates];

// What the derivative needs of every step, (T, B, H) each: what the gates became, and the c
// that the step started from.
enum Kept { kC = kGates, kKept };

inline int64_t divided_up(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

struct Layer {
  int64_t steps, batch, inputs, units;
  bool reverse;
  const bool* valid;  // (T, B), or null if every step counts.
  // How many threads, and whether they divide up the units of all rows, which costs a
  // barrier at every step, or the rows, in `parts` parts.
  int64_t threads, parts;
  bool by_units;

  // The time of the s-th step.
  int64_t time(int64_t s) const { return reverse ? steps - 1 - s : s; }

  bool counts(int64_t t, int64_t row) const {
    return valid == nullptr || valid[t * batch + row];
  }

  int64_t weight_bytes() const {
    return sizeof(float) * kGates * units * (inputs + units);
  }

  // Larger than what a core's own cache holds beside all else.
  bool has_large_weights() const { return weight_bytes() > 1 << 19; }

  // So large that a step, even of one row, takes long compared with a barrier.
  bool has_medium_weights() const { return weight_bytes() > 1 << 18; }

  // Units are shared out if that occupies more threads than sharing out rows, and a step
  // is worth the barrier; also if there are few rows per thread and large weights: reading
  // these dominates then, and each thread reads those of its units only.
  void share_out(int64_t available) {
    constexpr int64_t kFewRows = 24;
    constexpr int64_t kLeastRows = 8;
    constexpr int64_t kPartsAThread = 4;
    constexpr int64_t kRowsAPart = 2 * kRows;
    const int64_t row_shares = batch / kLeastRows;
    const int64_t unit_panels = divided_up(units, kPanel);  // In the backward loop.
    by_units = available > 1 &&
               ((row_shares < std::min(available, unit_panels) && has_medium_weights()) ||
                (batch < kFewRows * available && has_large_weights()));
    const int64_t most = by_units ? divided_up(units, kLanes) : row_shares;
    threads = std::clamp<int64_t>(most, 1, available);
    // A thread that another process holds up leaves parts to the others. But every part
    // reads all weights, and large ones from beyond the core's cache.
    const bool has_parts = threads > 1 && !has_large_weights();
    const int64_t most_parts = has_parts ? kPartsAThread * threads : threads;
    parts = std::clamp(batch / kRowsAPart, threads, most_parts);
  }

  Share rows_of(int64_t part) const { return share_of(batch, part, parts); }
};

// Aligned, uninitialised floats.
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
