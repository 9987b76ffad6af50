// The recurrence of persistent.h, forward.
//
// Thread 4·u + g computes its share of all four sums of unit u, and gets the sum of gate g
// by adding its neighbours' shares. The state of row r is held by the thread with
// g = r mod 4, which receives the other three gates.

#pragma once

#include "persistent.h"

namespace flax_lstm {

template <typename S>
constexpr int forward_shared_size() {
  return 2 * S::kRows * S::kUnits + S::kInShared * S::kThreads;
}

template <typename S, bool keeps>
__device__ void run_forward(const Recurrence& layer, float* shared) {
  const int units = layer.units, gate = threadIdx.x % kGates;
  const Place<S> place = {static_cast<int>(threadIdx.x) / kGates, gate};
  const int unit = place.unit, first_row = place.first_row;
  const bool is_unit = unit < units;
  float* h = shared;  // (2, kRows, kUnits): before and after a step.
  const Weights<S, kGates> weights(
      shared + 2 * S::kRows * S::kUnits, gate, [&](int n, int k) {
        const int of = gate ^ n;  // As sum_over_four has it.
        return is_unit && k < units ? layer.w_h[of][k * units + unit] : 0.0f;
      });

  float c[S::kOwned], own_h[S::kOwned];
  place.read(layer, own_h, layer.h_0);
  place.read(layer, c, layer.c_0);
#pragma unroll
  for (int n = 0; n < S::kOwned; ++n) {
    if (place.owned(n) < S::kRows) h[place.owned(n) * S::kUnits + unit] = own_h[n];
  }

  // Rows that exist; none for a unit that does not.
  const int rows = is_unit ? layer.batch - first_row : 0;
  const float bias = is_unit ? layer.bias[gate][unit] : 0.0f;
  float* const own_gates = keeps ? layer.to_keep[gate] : nullptr;
  // Index of the block's first row and this thread's unit within a step's elements.
  const int at = first_row * units + unit;
  const int at_z = (first_row * kGates + gate) * units + unit;

  float next_z[S::kRows];
  bool next_counts[S::kOwned];
  const auto load = [&](int s) {
    const int t = layer.time(s);
    const int first_z = t * layer.batch * kGates * units + at_z;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const bool is_there = s < layer.steps && r < rows;
      next_z[r] = is_there ? layer.z_x[first_z + r * kGates * units] : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) {
      next_counts[n] = s < layer.steps && place.owns(layer, n) &&
                       (!layer.valid || layer.valid[t * layer.batch + place.row(n)]);
    }
  };
  load(0);
  __syncthreads();

  float *now = h, *next = h + S::kRows * S::kUnits;
  for (int s = 0; s < layer.steps; ++s) {
    float sums[S::kRows][4];
    bool counts[S::kOwned];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      sums[r][0] = next_z[r] + bias;
      sums[r][1] = sums[r][2] = sums[r][3] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) counts[n] = next_counts[n];
    load(s + 1);  // Takes long: the data arrives during the product.
    weights.add_products(sums, now + 4 * gate, S::kUnits);

    const int first = layer.time(s) * layer.batch * units + at;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const int owner = r % kGates, n = r / kGates;
      const int here = first + r * units;
      // In the owner, whose own gate has its number, gates[n] is gate n.
      float gates[kGates];
      gates[owner] = activated(sum_over_four(sums[r]), gate == 2);
#pragma unroll
      for (int other = 1; other < kGates; ++other) {
        gates[owner ^ other] = __shfl_xor_sync(kWholeWarp, gates[owner], other);
      }
      if (keeps && r < rows) own_gates[here] = gates[owner];
      if (gate != owner) continue;
      if (keeps && r < rows) layer.to_keep[kGates][here] = c[n];
      const float new_c = gates[1] * c[n] + gates[0] * gates[2];
      const float new_h = gates[3] * fast_tanh(new_c);
      if (counts[n]) {
        c[n] = new_c;
        own_h[n] = new_h;
      }
      next[r * S::kUnits + unit] = own_h[n];
      if (r < rows) layer.y[here] = counts[n] ? new_h : 0.0f;
    }
    __syncthreads();
    float* const before = now;
    now = next;
    next = before;
  }
  place.write(layer, own_h, layer.h_n);
  place.write(layer, c, layer.c_n);
}

}  // namespace flax_lstm
