// An LSTM layer's recurrence on a GPU, one block of threads per group of rows of the batch.
//
// Rows do not depend on each other, so a block runs its rows through all steps by
// itself: no block waits for another. The recurrent weights stay on the chip, in the
// registers of the threads and, where those do not suffice, in shared memory. The
// input product is computed beforehand, and the weights' gradients by one product over
// all steps afterwards.
//
// The time of a step depends on the number of instructions and of reads from shared
// memory, so a thread has weights of four or eight sums rather than one (`Weights`): it
// reads a factor once for as many products. With eight there are two threads for each unit,
// with up to 255 registers each, and with four there are four. Products are in float32,
// even where XLA's are in TF32: tensor cores multiply eight rows or more at once, and a
// block has fewer for up to 528 rows on 132 multiprocessors.
//
// Axes are those of layer.h. persistent_forward.h and persistent_backward.h have the
// kernels.

#pragma once

#include <cstdint>

namespace flax_lstm {

constexpr int kGates = 4;

// kUnits: how many units a block has weights for; H rounded up, the rest being zeros.
template <int kUnits_, int kRows_, int kSums_, int kInRegisters_>
struct Shape {
  static constexpr int kUnits = kUnits_;  // A multiple of 32.
  static constexpr int kRows = kRows_;    // Of a block.
  static constexpr int kSums = kSums_;    // Of which a thread has a part: 4 or 8.
  static constexpr int kInRegisters = kInRegisters_;  // Of a thread's weights.
  static constexpr int kThreads = 16 * kUnits / kSums;
  static constexpr int kInShared = kUnits * kSums / 4 - kInRegisters;
  // Units whose state a group of four threads holds; each thread holds that of one.
  static constexpr int kPerFour = kSums / 4;
  // Threads that hold one unit's state: each has every kOwners-th row.
  static constexpr int kOwners = 4 / kPerFour;
  static constexpr int kOwned = (kRows + kOwners - 1) / kOwners;
  static_assert(kUnits % 32 == 0 && kInRegisters % 4 == 0 && kInShared >= 0);
  static_assert(kSums == 4 || kSums == 8);
};

// One layer's arrays, of fewer than 2³¹ elements each, so that an index is one register.
// Those that a kernel does not use are null.
struct Recurrence {
  int steps, batch, units;
  bool reverse;
  const bool* valid;    // (T, B), or null if every step counts.
  const float* w_h[4];  // (H, H)
  // Forward:
  const float* z_x;        // (T, B, 4·H), without the bias.
  const float* bias[4];    // (H,)
  const float *h_0, *c_0;  // (B, H)
  float *y, *h_n, *c_n;    // (T, B, H), (B, H), (B, H)
  float* to_keep[5];       // i, f, g, o and the c before, (T, B, H) each.
  // Backward:
  const float* kept[5];
  const float *d_y, *d_h_n, *d_c_n;  // As y, h_n, c_n.
  float *d_z, *d_h_0, *d_c_0;        // As z_x, h_0, c_0.

  __device__ int time(int s) const { return reverse ? steps - 1 - s : s; }
};

// The unit whose state a thread holds, and for which rows.
template <typename S>
struct Place {
  int unit, owner;
  int first_row = blockIdx.x * S::kRows;

  // The n-th row of this thread, counted in the block and in the batch.
  __device__ int owned(int n) const { return S::kOwners * n + owner; }
  __device__ int row(int n) const { return first_row + owned(n); }
  __device__ bool owns(const Recurrence& layer, int n) const {
    return owned(n) < S::kRows && row(n) < layer.batch && unit < layer.units;
  }

  // Whether a row at time t counts: 0 or 1. In a whole register, so that nothing waits for
  // the byte before it is used.
  __device__ unsigned counts(const Recurrence& layer, int t, int n) const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(layer.valid);
    return bytes ? bytes[t * layer.batch + row(n)] : 1u;
  }

  // This thread's part of a state (B, H); zeros outside of it.
  __device__ void read(const Recurrence& layer, float (&own)[S::kOwned],
                       const float* state) const {
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) {
      own[n] = owns(layer, n) ? state[row(n) * layer.units + unit] : 0.0f;
    }
  }
  __device__ void write(const Recurrence& layer, const float (&own)[S::kOwned],
                        float* state) const {
#pragma unroll
    for (int n = 0; n < S::kOwned; ++n) {
      if (owns(layer, n)) state[row(n) * layer.units + unit] = own[n];
    }
  }
};

constexpr unsigned kWholeWarp = 0xffffffffu;

// One thread's weights. kSlices neighbours share kSums sums over kSlices·kUnits/4
// factors: of each sum, thread `slice` has every kSlices-th group of four factors, so
// that neighbours read adjacent elements.
template <typename S, int kSlices>
class Weights {
 public:
  // get(n, k) gives the n-th sum's weight of the k-th factor; `shared` has room for
  // S::kInShared · S::kThreads floats.
  template <typename Get>
  __device__ Weights(float* shared, int slice, const Get& get)
      : shared_(reinterpret_cast<float4*>(shared) + threadIdx.x) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int k = 4 * (group * kSlices + slice);
#pragma unroll
      for (int n = 0; n < S::kSums; ++n) {
        const float4 four = {get(n, k), get(n, k + 1), get(n, k + 2), get(n, k + 3)};
        const int index = S::kSums * group + n;
        if (index < kOwn) {
          own_[index] = four;
        } else {
          shared_[(index - kOwn) * S::kThreads] = four;
        }
      }
    }
  }

  // sums[r][n] += Σ_k weight[n][k] · factors[r · stride + k] over this thread's k;
  // `factors` begins with the first of them.
  __device__ void add_products(float (&sums)[S::kRows][S::kSums], const float* factors,
                               int stride) const {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      float4 weights[S::kSums];
#pragma unroll
      for (int n = 0; n < S::kSums; ++n) {
        const int index = S::kSums * group + n;
        weights[n] = index < kOwn ? own_[index < kOwn ? index : 0]
                                  : shared_[(index - kOwn) * S::kThreads];
      }
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) {
        const float4 four = *reinterpret_cast<const float4*>(
            factors + r * stride + 4 * group * kSlices);
#pragma unroll
        for (int n = 0; n < S::kSums; ++n) {
          sums[r][n] += weights[n].x * four.x;
          sums[r][n] += weights[n].y * four.y;
          sums[r][n] += weights[n].z * four.z;
          sums[r][n] += weights[n].w * four.w;
        }
      }
    }
  }

 private:
  static constexpr int kGroups = S::kUnits / 16, kOwn = S::kInRegisters / 4;

  float4 own_[kOwn];
  float4* shared_;
};

// This thread's sum, of which four neighbours have parts: thread s has in
// sums[first + n] its part of the sum of thread s ^ n.
template <int kSums>
__device__ float sum_over_four(const float (&sums)[kSums], int first) {
  float sum = sums[first];
#pragma unroll
  for (int n = 1; n < 4; ++n) sum += __shfl_xor_sync(kWholeWarp, sums[first + n], n);
  return sum;
}

__device__ inline float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

// tanh x for x near 0, where 2·σ(2·x) - 1 loses its digits to cancellation.
constexpr float kNearZero = 0.55f;

__device__ inline float tanh_near_zero(float x) {
  const float square = x * x;
  float rest = -6.1987243e-3f;  // (tanh x / x - 1) / x²; relative error of tanh x 7e-9.
  rest = rest * square + 2.1020554e-2f;
  rest = rest * square - 5.3840518e-2f;
  rest = rest * square + 1.3332480e-1f;
  rest = rest * square - 3.3333313e-1f;
  return x + x * (square * rest);
}

__device__ inline float fast_tanh(float x) {
  const float far = 2.0f * sigmoid(2.0f * x) - 1.0f;
  return fabsf(x) < kNearZero ? tanh_near_zero(x) : far;
}

// tanh for gate g, σ for the others; without a branch, since a warp has all of them.
__device__ inline float activated(float z, bool by_tanh) {
  const float scale = by_tanh ? 2.0f : 1.0f;
  const float far = scale * sigmoid(scale * z) + (1.0f - scale);
  return by_tanh && fabsf(z) < kNearZero ? tanh_near_zero(z) : far;
}

}  // namespace flax_lstm
