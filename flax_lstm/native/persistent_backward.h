// The recurrence of persistent.h, backward.
//
// Sixteen threads compute shares of the gradients of the h of four units, or of eight, over
// all gates; each gets the sum for every fourth unit, and holds the state of one.

#pragma once

#include "persistent.h"

namespace flax_lstm {

constexpr int kBackwardSlices = 16;

// Stride of a row's gradients in shared memory, (kGates, kUnits), such that what a warp
// writes at once, some units of kOwners rows, is in different banks.
template <typename S>
constexpr int kGradientStride = kGates * S::kUnits + 32 / S::kOwners;

template <typename S>
constexpr int backward_shared_size() {
  return 2 * S::kRows * kGradientStride<S> + S::kInShared * S::kThreads;
}

// What a step reads of one row and unit.
struct Step {
  float i, f, g, o, c, d_y;
  unsigned counts;
};

template <typename S>
__device__ void run_backward(const Recurrence& layer, float* shared) {
  constexpr int kStride = kGradientStride<S>;
  const int units = layer.units, slice = threadIdx.x % kBackwardSlices;
  const int first_unit = threadIdx.x / kBackwardSlices * S::kSums;
  const int own_four = slice / 4 % S::kPerFour;  // In which four units its own is.
  const Place<S> place = {first_unit + 4 * own_four + slice % 4,
                          slice / 4 / S::kPerFour};
  const int unit = place.unit;
  float* d_z = shared;  // (2, kRows, kGates, kUnits): of a step and of the next.
  const Weights<S, kBackwardSlices> weights(
      shared + 2 * S::kRows * kStride, slice, [&](int n, int k) {
        // From a unit's gate to the unit that sum_over_four has the n-th sum for.
        const int gate = k / S::kUnits, from = k % S::kUnits;
        const int to = first_unit + n / 4 * 4 + (slice % 4 ^ n % 4);
        const bool are_units = from < units && to < units;
        return are_units ? layer.w_h[gate][to * units + from] : 0.0f;
      });

  float d_h[S::kOwned], d_c[S::kOwned];
  place.read(layer, d_h, layer.d_h_n);
  place.read(layer, d_c, layer.d_c_n);
  Step next[S::kOwned];
  const auto load = [&](int s) {
    const int t = layer.time(s);
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) {
      next[n] = {};
      if (s < 0 || !place.owns(layer, n)) continue;
      const int at_row = t * layer.batch + place.row(n), at = at_row * units + unit;
      next[n] = {layer.kept[0][at], layer.kept[1][at], layer.kept[2][at],
                 layer.kept[3][at], layer.kept[4][at], layer.d_y[at],
                 place.counts(layer, t, n)};
    }
  };
  load(layer.steps - 1);

  float *now = d_z, *other = d_z + S::kRows * kStride;
  for (int s = layer.steps - 1; s >= 0; --s) {
    Step of_step[S::kOwned];
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) of_step[n] = next[n];
    load(s - 1);
    const int first_row = layer.time(s) * layer.batch;
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) {
      if (place.owned(n) >= S::kRows) continue;
      const auto [i, f, g, o, c, d_y, counts] = of_step[n];
      float gradients[kGates] = {};
      if (counts) {
        const float tanh_c = fast_tanh(f * c + i * g), d_h_now = d_h[n] + d_y;
        const float d_c_now = d_c[n] + d_h_now * o * (1.0f - tanh_c * tanh_c);
        gradients[0] = d_c_now * g * i * (1.0f - i);
        gradients[1] = d_c_now * c * f * (1.0f - f);
        gradients[2] = d_c_now * i * (1.0f - g * g);
        gradients[3] = d_h_now * tanh_c * o * (1.0f - o);
        d_c[n] = d_c_now * f;
      }
      const bool owns = place.owns(layer, n);
      const int at = (first_row + place.row(n)) * kGates * units + unit;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        now[place.owned(n) * kStride + gate * S::kUnits + unit] = gradients[gate];
        if (owns) layer.d_z[at + gate * units] = gradients[gate];
      }
    }
    __syncthreads();

    float sums[S::kRows][S::kSums] = {};
    weights.add_products(sums, now + 4 * slice, kStride);
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const int n = r / S::kOwners;
#pragma unroll
      for (int u = 0; u < S::kPerFour; ++u) {
        float sum = sum_over_four(sums[r], 4 * u);
        sum += __shfl_xor_sync(kWholeWarp, sum, 4);
        sum += __shfl_xor_sync(kWholeWarp, sum, 8);
        const bool is_own = place.owner == r % S::kOwners && own_four == u;
        // A row that does not count passes on the gradient that it was given.
        if (is_own && of_step[n].counts) d_h[n] = sum;
      }
    }
    float* const before = now;
    now = other;
    other = before;
  }
  place.write(layer, d_h, layer.d_h_0);
  place.write(layer, d_c, layer.d_c_0);
}

}  // namespace flax_lstm
