// The recurrence of persistent.h, forward.
//
// Four threads, each with its number as its gate, compute shares of all sums of one unit,
// or of two; by adding its neighbours' shares, each gets the sums of its gate. For a row
// and unit, the thread that holds the state receives the other three gates.

#pragma once

#include "persistent.h"

namespace flax_lstm {

template <typename S>
constexpr int forward_shared_size() {
  return 2 * S::kRows * S::kUnits + S::kInShared * S::kThreads;
}

template <typename S, bool keeps>
__device__ void run_forward(const Recurrence& layer, float* shared) {
  constexpr int kPerFour = S::kPerFour;
  const int units = layer.units, gate = threadIdx.x % kGates;
  const int first_unit = threadIdx.x / kGates * kPerFour;
  const int own_u = gate % kPerFour;
  const Place<S> place = {first_unit + own_u, gate / kPerFour};
  const int unit = place.unit, first_row = place.first_row;
  float* h = shared;  // (2, kRows, kUnits): before and after a step.
  const Weights<S, kGates> weights(
      shared + 2 * S::kRows * S::kUnits, gate, [&](int n, int k) {
        const int of = gate ^ n % kGates;  // As sum_over_four has it.
        const int to = first_unit + n / kGates;
        return to < units && k < units ? layer.w_h[of][k * units + to] : 0.0f;
      });

  float c[S::kOwned], own_h[S::kOwned];
  place.read(layer, own_h, layer.h_0);
  place.read(layer, c, layer.c_0);
#pragma unroll
  for (int n = 0; n < S::kOwned; ++n) {
    if (place.owned(n) < S::kRows) h[place.owned(n) * S::kUnits + unit] = own_h[n];
  }

  // Of each unit: the rows that exist (none for a unit that does not), and the bias.
  int rows[kPerFour];
  float bias[kPerFour];
#pragma unroll
  for (int u = 0; u < kPerFour; ++u) {
    const bool is_unit = first_unit + u < units;
    rows[u] = is_unit ? layer.batch - first_row : 0;
    bias[u] = is_unit ? layer.bias[gate][first_unit + u] : 0.0f;
  }
  const int own_rows = unit < units ? layer.batch - first_row : 0;
  float* const own_gates = keeps ? layer.to_keep[gate] : nullptr;
  // Index of the block's first row and the first unit within a step's elements.
  const int at = first_row * units + first_unit;
  const int at_z = (first_row * kGates + gate) * units + first_unit;

  float next_z[S::kRows][kPerFour];
  unsigned next_counts[S::kOwned];
  const auto load = [&](int s) {
    const int t = layer.time(s);
    const int first_z = t * layer.batch * kGates * units + at_z;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
#pragma unroll
      for (int u = 0; u < kPerFour; ++u) {
        const bool is_there = s < layer.steps && r < rows[u];
        next_z[r][u] = is_there ? layer.z_x[first_z + r * kGates * units + u] : 0.0f;
      }
    }
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) {
      const bool is_there = s < layer.steps && place.owns(layer, n);
      next_counts[n] = is_there ? place.counts(layer, t, n) : 0u;
    }
  };
  load(0);
  __syncthreads();

  float *now = h, *next = h + S::kRows * S::kUnits;
  for (int s = 0; s < layer.steps; ++s) {
    float sums[S::kRows][S::kSums] = {};
    unsigned counts[S::kOwned];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
#pragma unroll
      for (int u = 0; u < kPerFour; ++u) sums[r][kGates * u] = next_z[r][u] + bias[u];
    }
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) counts[n] = next_counts[n];
    load(s + 1);  // Takes long: the data arrives during the product.
    weights.add_products(sums, now + 4 * gate, S::kUnits);

    const int first = layer.time(s) * layer.batch * units + at;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const int n = r / S::kOwners, here = first + r * units;
      float gates[kGates];  // Of the unit and row that this thread holds.
#pragma unroll
      for (int u = 0; u < kPerFour; ++u) {
        const float own = activated(sum_over_four(sums[r], kGates * u), gate == 2);
        if (keeps && r < rows[u]) own_gates[here + u] = own;
        // The thread that holds them has this number, and so has its own gate.
        const int holder = r % S::kOwners * kPerFour + u;
#pragma unroll
        for (int other = 0; other < kGates; ++other) {
          const float received =
              other ? __shfl_xor_sync(kWholeWarp, own, other) : own;
          const bool is_held = u == 0 || own_u == u;
          gates[holder ^ other] = is_held ? received : gates[holder ^ other];
        }
      }
      if (place.owner != r % S::kOwners) continue;
      const bool is_there = r < own_rows;
      if (keeps && is_there) layer.to_keep[kGates][here + own_u] = c[n];
      const float new_c = gates[1] * c[n] + gates[0] * gates[2];
      const float new_h = gates[3] * fast_tanh(new_c);
      if (counts[n]) {
        c[n] = new_c;
        own_h[n] = new_h;
      }
      next[r * S::kUnits + unit] = own_h[n];
      if (is_there) layer.y[here + own_u] = counts[n] ? new_h : 0.0f;
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
