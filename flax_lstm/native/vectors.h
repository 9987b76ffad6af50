// Vectors of float32 as wide as this processor's registers, and what the cells need
// of them. Written with GCC's vector types, which Clang has too: the compiler picks the
// instructions.

#pragma once

#include <cstdint>
#include <cstring>

// Which product and sum are contracted to one instruction is decided by the source, not by
// the tile's size. For a sum of two products, which can be contracted in two ways, GCC
// needs `rounded`.
#ifdef __clang__
#pragma clang fp contract(on)
#endif

namespace flax_lstm {

// kRows rows by four vectors are summed in registers, besides one vector of weights and
// one input per row: 31 of the 32 registers of AVX-512 and NEON, all 16 of AVX. SSE has
// 16, too, and needs one more for a product.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 6;
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kRows = 3;
#elif defined(__SSE__)
constexpr int kLanes = 4;
constexpr int kRows = 2;
#else
constexpr int kLanes = 4;
constexpr int kRows = 6;
#endif

// A function that is not inlined is called with every register spilled to memory first.
#define FLAX_LSTM_INLINE inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));

// x - 0 is x for every x, so it costs nothing: x + 0 would change -0, and so take one
// instruction per call, a fifth of all in a product's loop.
FLAX_LSTM_INLINE Vector splat(float x) { return x - Vector{}; }

// A product as it is: the sum that it is a term of takes it rounded.
FLAX_LSTM_INLINE Vector rounded(Vector product) {
#if defined(__SSE__)
  __asm__("" : "+v"(product));
#elif defined(__ARM_NEON)
  __asm__("" : "+w"(product));
#endif
  return product;
}

// The first `count` lanes (at most all); zeros after them.
FLAX_LSTM_INLINE Vector load(const float* from, int64_t count = kLanes) {
  Vector vector{};
  if (count >= kLanes) {
    std::memcpy(&vector, from, sizeof vector);
  } else {
    std::memcpy(&vector, from, count * sizeof(float));
  }
  return vector;
}

FLAX_LSTM_INLINE void store(float* to, Vector vector, int64_t count = kLanes) {
  if (count >= kLanes) {
    std::memcpy(to, &vector, sizeof vector);
  } else {
    std::memcpy(to, &vector, count * sizeof(float));
  }
}

FLAX_LSTM_INLINE float sum(Vector vector) {
  float lanes[kLanes];
  store(lanes, vector);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// The argument from which tanh is exactly 1: with FMA instructions the quotient gets there
// later.
#if defined(__FMA__) || defined(__AVX512F__) || defined(__ARM_FEATURE_FMA)
constexpr float kTanhIsOne = 7.99881172180175781f;
#else
constexpr float kTanhIsOne = 7.90531110763549805f;
#endif

// A quotient of polynomials, within 7 units in the last place of the true value (where
// subnormal numbers are flushed, 0 below 2.4e-36). The coefficients and bounds are those of
// Eigen's and XLA's own float32 tanh.
FLAX_LSTM_INLINE Vector tanh(Vector x) {
  const Vector bound = splat(kTanhIsOne);
  x = x > bound ? bound : x;
  x = x < -bound ? -bound : x;
  const Vector s = x * x;
  Vector p = splat(-2.76076847742355e-16f);
  p = p * s + 2.00018790482477e-13f;
  p = p * s - 8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  Vector q = splat(1.19825839466702e-06f);
  q = q * s + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p / q;
}

// e**x for x in [-87, 89], within two units in the last place; infinite from 88.4 on.
// 2**n is made of n's bits, and e**r, |r| <= ln(2) / 2, is a polynomial: the best of its
// degree that begins with 1 + r.
FLAX_LSTM_INLINE Vector exp(Vector x) {
  typedef int32_t Bits __attribute__((vector_size(sizeof(Vector))));
  // From 2**23 to 2**24 the numbers are the integers, and end in their low bits.
  const Vector to_bits = splat(12582912.0f + 127.0f);
  const Vector shifted = x * 1.44269504f + to_bits;
  const Vector n = shifted - to_bits;
  Vector r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vector p = splat(1.38145e-3f);
  p = p * r + 8.36875e-3f;
  p = p * r + 4.166839e-2f;
  p = p * r + 0.1666652f;
  p = p * r + 0.49999993f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= 23;
  Vector power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// A gate that is nearly closed keeps its digits, down to 0 from -88.4 on; from 17 on it is
// exactly 1, so that an open gate loses nothing over any number of steps.
FLAX_LSTM_INLINE Vector sigmoid(Vector x) {
  const Vector open = splat(87.0f), closed = splat(-89.0f);
  x = x > open ? open : x;
  x = x < closed ? closed : x;
  return 1.0f / (1.0f + exp(-x));
}

// sums[r][n] += Σ_k rows[r·stride + k] · panel[k][n], where a panel holds N vectors a k.
// The order of a sum does not depend on R, and every product is added by the same kind of
// instruction: whichever tile a row is in, it gets the same bits.
template <int R, int N>
FLAX_LSTM_INLINE void add_products(Vector (&sums)[R][N], const float* rows,
                                   int64_t stride, const float* panel, int64_t count) {
  // An array that is never indexed by run-time values elsewhere stays in registers.
  Vector local[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) local[r][n] = sums[r][n];
  }
  for (int64_t k = 0; k < count; ++k, ++rows, panel += N * kLanes) {
    Vector x[R];
    for (int r = 0; r < R; ++r) x[r] = splat(rows[r * stride]);
    for (int n = 0; n < N; ++n) {
      const Vector weights = load(panel + n * kLanes);
      for (int r = 0; r < R; ++r) local[r][n] += x[r] * weights;
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) sums[r][n] = local[r][n];
  }
}

// Calls tile<R>(first) for tiles of R = kRows of the rows [begin, end), and for smaller
// ones at the end. If R > 2, a tile of two rows takes no longer than one of a single row,
// so the last tile is not a single row if there are others.
template <int R = kRows, typename Tile>
inline void in_tiles(int64_t begin, int64_t end, const Tile& tile) {
  for (; begin + R <= end; begin += R) {
    if (R > 2 && begin + R == end - 1) break;
    tile.template operator()<R>(begin);
  }
  if constexpr (R > 1) {
    if (begin < end) in_tiles<R - 1>(begin, end, tile);
  }
}

}  // namespace flax_lstm
