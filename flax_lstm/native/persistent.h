// An LSTM layer's recurrence on a GPU, a block of threads for some rows of the batch.
//
// Rows do not depend on each other, so a block runs its rows through all steps by
// itself: no block waits for another. The recurrent weights stay on the chip, in the
// registers of the threads and, where those do not suffice, in shared memory. The
// inputs' product comes ready-made, and the weights' gradients are left to one product
// of all steps afterwards.
//
// Thread 4·u + g belongs to unit u and gate g, so that a unit's four gates are
// neighbours in a warp. The state of row r, unit u is held by the one with g = r mod 4.
// Axes are those of layer.h.

#pragma once

#include <cstdint>

namespace flax_lstm {

// Units that a thread has weights for: H rounded up to it, and zeros between.
template <int kUnits_, int kRows_, int kInRegisters_>
struct Shape {
  static constexpr int kUnits = kUnits_;              // A multiple of 32.
  static constexpr int kRows = kRows_;                // Of a block.
  static constexpr int kInRegisters = kInRegisters_;  // Of kUnits; a multiple of 4.
  static constexpr int kGates = 4;
  static constexpr int kThreads = kUnits * kGates;
  // Rows whose state a thread holds.
  static constexpr int kOwned = (kRows + kGates - 1) / kGates;
  static constexpr int kInShared = kUnits - kInRegisters;
};

// One layer's arrays. What a kernel has no use for is null.
struct Recurrence {
  int steps, batch, units;
  bool reverse;
  const bool* valid;    // (T, B), or null if every step counts.
  const float* w_h[4];  // (H, H)
  // Forward:
  const float* z_x;          // (T, B, 4·H)
  const float *h_0, *c_0;    // (B, H)
  float *y, *h_n, *c_n;      // (T, B, H), (B, H), (B, H)
  float* to_keep[5];         // i, f, g, o and the c before, (T, B, H) each.
  // Backward:
  const float* kept[5];
  const float *d_y, *d_h_n, *d_c_n;  // As y, h_n, c_n.
  float *d_z, *d_h_0, *d_c_0;        // As z_x, h_0, c_0.

  __device__ int time(int s) const { return reverse ? steps - 1 - s : s; }

  __device__ bool counts(int t, int row) const {
    return row < batch && (valid == nullptr || valid[t * batch + row]);
  }
};

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// One thread's weights: those of one sum over kUnits.
template <typename S>
class Weights {
 public:
  // get(k) gives the k-th; `shared` has room for S::kInShared · S::kThreads numbers.
  template <typename Get>
  __device__ Weights(float* shared, const Get& get) : shared_(shared + threadIdx.x) {
#pragma unroll
    for (int k = 0; k < S::kInRegisters; ++k) own_[k] = get(k);
    for (int k = 0; k < S::kInShared; ++k) {
      shared_[k * S::kThreads] = get(S::kInRegisters + k);
    }
  }

  // sums[r] += Σ_k weight[k] · factors[r · stride + k]
  __device__ void add_products(float (&sums)[S::kRows], const float* factors,
                               int stride) const {
#pragma unroll
    for (int k = 0; k < S::kInRegisters; k += 4) {
      const float weights[4] = {own_[k], own_[k + 1], own_[k + 2], own_[k + 3]};
      add_four(sums, weights, factors + k, stride);
    }
#pragma unroll 4
    for (int k = 0; k < S::kInShared; k += 4) {
      float weights[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[j] = shared_[(k + j) * S::kThreads];
      add_four(sums, weights, factors + S::kInRegisters + k, stride);
    }
  }

 private:
  __device__ static void add_four(float (&sums)[S::kRows], const float (&weights)[4],
                                  const float* factors, int stride) {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const float4 four = *reinterpret_cast<const float4*>(factors + r * stride);
      sums[r] += weights[0] * four.x;
      sums[r] += weights[1] * four.y;
      sums[r] += weights[2] * four.z;
      sums[r] += weights[3] * four.w;
    }
  }

  float own_[S::kInRegisters];
  float* shared_;
};

// What a thread is, in a block that begins with a row of the batch.
template <typename S>
struct Place {
  int unit = threadIdx.x / S::kGates, gate = threadIdx.x % S::kGates;
  int first_row = blockIdx.x * S::kRows;

  // The n-th row whose state this thread holds, counted in the block and in the batch.
  __device__ int owned(int n) const { return n * S::kGates + gate; }
  __device__ int row(int n) const { return first_row + owned(n); }
  __device__ bool owns(const Recurrence& layer, int n) const {
    return owned(n) < S::kRows && row(n) < layer.batch && unit < layer.units;
  }
};

constexpr unsigned kWholeWarp = 0xffffffffu;

template <typename S>
constexpr int forward_shared_size() {
  return 2 * S::kRows * S::kUnits + S::kInShared * S::kThreads;
}

template <typename S, bool keeps>
__device__ void run_forward(const Recurrence& layer, float* shared) {
  const Place<S> place;
  const int units = layer.units, unit = place.unit, gate = place.gate;
  const bool is_unit = unit < units;
  float* h = shared;  // (2, kRows, kUnits): before and after a step.
  const Weights<S> weights(shared + 2 * S::kRows * S::kUnits, [&](int k) {
    return is_unit && k < units ? layer.w_h[gate][k * units + unit] : 0.0f;
  });

  float c[S::kOwned], own_h[S::kOwned];
#pragma unroll
  for (int n = 0; n < S::kOwned; ++n) {
    const bool owns = place.owns(layer, n);
    const int in_state = place.row(n) * units + unit;
    c[n] = owns ? layer.c_0[in_state] : 0.0f;
    own_h[n] = owns ? layer.h_0[in_state] : 0.0f;
    if (place.owned(n) < S::kRows) h[place.owned(n) * S::kUnits + unit] = own_h[n];
  }
  const auto load_z = [&](float (&z)[S::kRows], int s) {
    const int t = layer.time(s);
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const int row = place.first_row + r;
      const bool is_there = s < layer.steps && is_unit && row < layer.batch;
      const int64_t at = (int64_t(t) * layer.batch + row) * S::kGates + gate;
      z[r] = is_there ? layer.z_x[at * units + unit] : 0.0f;
    }
  };
  float z[S::kRows], next_z[S::kRows];
  load_z(next_z, 0);
  __syncthreads();

  for (int s = 0; s < layer.steps; ++s) {
    const int t = layer.time(s);
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) z[r] = next_z[r];
    load_z(next_z, s + 1);  // Which takes long: it arrives during the product.
    weights.add_products(z, h + s % 2 * S::kRows * S::kUnits, S::kUnits);
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) z[r] = gate == 2 ? tanhf(z[r]) : sigmoid(z[r]);

    float* next_h = h + (s + 1) % 2 * S::kRows * S::kUnits;
    const int first_lane = threadIdx.x % 32 - gate;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      float gates[S::kGates];
#pragma unroll
      for (int g = 0; g < S::kGates; ++g) {
        gates[g] = __shfl_sync(kWholeWarp, z[r], first_lane + g);
      }
      const int row = place.first_row + r, n = r / S::kGates;
      const int64_t in_steps = (int64_t(t) * layer.batch + row) * units + unit;
      const bool is_there = is_unit && row < layer.batch;
      if (keeps && is_there) layer.to_keep[gate][in_steps] = z[r];
      if (gate != r % S::kGates) continue;
      if (keeps && is_there) layer.to_keep[S::kGates][in_steps] = c[n];
      const float new_c = gates[1] * c[n] + gates[0] * gates[2];
      const bool counts = is_there && layer.counts(t, row);
      const float new_h = gates[3] * tanhf(new_c);
      if (counts) {
        c[n] = new_c;
        own_h[n] = new_h;
      }
      next_h[r * S::kUnits + unit] = own_h[n];
      if (is_there) layer.y[in_steps] = counts ? new_h : 0.0f;
    }
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < S::kOwned; ++n) {
    if (!place.owns(layer, n)) continue;
    const int in_state = place.row(n) * units + unit;
    layer.h_n[in_state] = own_h[n];
    layer.c_n[in_state] = c[n];
  }
}

// A gate's gradients of all units, four floats apart from the next gate's in their
// banks: the four gates of a warp are read at once.
template <typename S>
constexpr int kGateStride = S::kUnits + 4;

template <typename S>
constexpr int backward_shared_size() {
  return 2 * S::kRows * S::kGates * kGateStride<S> + S::kInShared * S::kThreads;
}

// What a step backward reads of one row and unit.
struct Step {
  float i, f, g, o, c, d_y;
  bool counts;
};

template <typename S>
__device__ void run_backward(const Recurrence& layer, float* shared) {
  constexpr int kRowStride = S::kGates * kGateStride<S>;
  const Place<S> place;
  const int units = layer.units, unit = place.unit, gate = place.gate;
  const bool is_unit = unit < units;
  float* d_z = shared;  // (2, kRows, kGates, kGateStride): of a step and of the next.
  // Here a thread sums over a gate's units what they pass to h of its own unit.
  const Weights<S> weights(shared + 2 * S::kRows * kRowStride, [&](int k) {
    return is_unit && k < units ? layer.w_h[gate][unit * units + k] : 0.0f;
  });

  float d_h[S::kOwned], d_c[S::kOwned];
#pragma unroll
  for (int n = 0; n < S::kOwned; ++n) {
    const bool owns = place.owns(layer, n);
    const int in_state = place.row(n) * units + unit;
    d_h[n] = owns ? layer.d_h_n[in_state] : 0.0f;
    d_c[n] = owns ? layer.d_c_n[in_state] : 0.0f;
  }
  const auto load = [&](Step (&step)[S::kOwned], int s) {
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) {
      step[n] = {};
      if (s < 0 || !place.owns(layer, n)) continue;
      const int t = layer.time(s), row = place.row(n);
      const int64_t at = (int64_t(t) * layer.batch + row) * units + unit;
      step[n] = {layer.kept[0][at], layer.kept[1][at], layer.kept[2][at],
                 layer.kept[3][at], layer.kept[4][at], layer.d_y[at],
                 layer.counts(t, row)};
    }
  };
  Step now[S::kOwned], next[S::kOwned];
  load(next, layer.steps - 1);

  for (int s = layer.steps - 1; s >= 0; --s) {
    const int t = layer.time(s);
    float* d_z_now = d_z + s % 2 * S::kRows * kRowStride;
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) now[n] = next[n];
    load(next, s - 1);
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) {
      if (place.owned(n) >= S::kRows) continue;
      const auto [i, f, g, o, c, d_y, counts] = now[n];
      float gradients[S::kGates] = {};
      if (counts) {
        const float tanh_c = tanhf(f * c + i * g), d_h_now = d_h[n] + d_y;
        const float d_c_now = d_c[n] + d_h_now * o * (1.0f - tanh_c * tanh_c);
        gradients[0] = d_c_now * g * i * (1.0f - i);
        gradients[1] = d_c_now * c * f * (1.0f - f);
        gradients[2] = d_c_now * i * (1.0f - g * g);
        gradients[3] = d_h_now * tanh_c * o * (1.0f - o);
        d_c[n] = d_c_now * f;
      }
      const bool owns = place.owns(layer, n);
      const int64_t row = int64_t(t) * layer.batch + place.row(n);
#pragma unroll
      for (int of = 0; of < S::kGates; ++of) {
        d_z_now[place.owned(n) * kRowStride + of * kGateStride<S> + unit] =
            gradients[of];
        if (owns) layer.d_z[(row * S::kGates + of) * units + unit] = gradients[of];
      }
    }
    __syncthreads();

    float sums[S::kRows] = {};
    weights.add_products(sums, d_z_now + gate * kGateStride<S>, kRowStride);
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      sums[r] += __shfl_xor_sync(kWholeWarp, sums[r], 1);
      sums[r] += __shfl_xor_sync(kWholeWarp, sums[r], 2);
      const int n = r / S::kGates;
      // A row that does not count passes on what it was given.
      if (gate == r % S::kGates && now[n].counts) d_h[n] = sums[r];
    }
  }
#pragma unroll
  for (int n = 0; n < S::kOwned; ++n) {
    if (!place.owns(layer, n)) continue;
    const int in_state = place.row(n) * units + unit;
    layer.d_h_0[in_state] = d_h[n];
    layer.d_c_0[in_state] = d_c[n];
  }
}

}  // namespace flax_lstm
