// What a step computes of the sums that the products leave in the registers, and the
// gradients of that. An LSTM has four such sums per unit, one per gate; so has a GRU:
// those of r and z, and of n the parts from the input and from the hidden state, which r
// multiplies. kOfX and kOfH are those that are products of the input and of h, a bit each;
// the other kernels are not read, and their gradients mean nothing.

#pragma once

#include <array>
#include <bit>
#include <cstddef>

#include "layer.h"
#include "vectors.h"

namespace flax_lstm {

// `kept` are the values that the gradients need, besides c.
struct Stepped {
  Vector kept[kGates], c, h;
};

// Those of the sums, and of the c that the step started from.
struct StepGradients {
  Vector z[kGates], c;
};

// The gates of such a set of bits.
template <unsigned bits>
constexpr auto gates_in() {
  std::array<int, std::popcount(bits)> gates{};
  std::size_t n = 0;
  for (int gate = 0; gate < kGates; ++gate) {
    if (bits >> gate & 1) gates[n++] = gate;
  }
  return gates;
}

struct Lstm {
  static constexpr unsigned kOfX = kAllGates, kOfH = kAllGates;

  static FLAX_LSTM_INLINE Stepped step(const Vector (&z)[kGates], Vector c) {
    const Vector i = sigmoid(z[0]), f = sigmoid(z[1]);
    const Vector g = tanh(z[2]), o = sigmoid(z[3]);
    const Vector new_c = f * c + rounded(i * g);
    return {{i, f, g, o}, new_c, o * tanh(new_c)};
  }

  static FLAX_LSTM_INLINE StepGradients gradients(const Vector (&kept)[kGates], Vector c,
                                                  Vector d_c_after, Vector d_h) {
    const auto [i, f, g, o] = kept;
    const Vector tanh_c = tanh(f * c + rounded(i * g));
    const Vector d_c = d_c_after + d_h * o * (1.0f - tanh_c * tanh_c);
    return {{d_c * g * i * (1.0f - i), d_c * c * f * (1.0f - f), d_c * i * (1.0f - g * g),
             d_h * tanh_c * o * (1.0f - o)},
            d_c * f};
  }
};

// Its c is h: the sums are of products of h, and z keeps a part of c.
struct Gru {
  static constexpr unsigned kOfX = 0b0111, kOfH = 0b1011;

  static FLAX_LSTM_INLINE Stepped step(const Vector (&sums)[kGates], Vector c) {
    const Vector r = sigmoid(sums[0]), z = sigmoid(sums[1]);
    const Vector n = tanh(sums[2] + rounded(r * sums[3]));
    const Vector h = (1.0f - z) * n + rounded(z * c);
    return {{r, z, n, sums[3]}, h, h};
  }

  static FLAX_LSTM_INLINE StepGradients gradients(const Vector (&kept)[kGates], Vector c,
                                                  Vector d_c_after, Vector d_h_after) {
    const auto [r, z, n, from_h] = kept;
    const Vector d_h = d_c_after + d_h_after;
    const Vector d_n = d_h * (1.0f - z) * (1.0f - n * n);
    return {{d_n * from_h * r * (1.0f - r), d_h * (c - n) * z * (1.0f - z), d_n, d_n * r},
            d_h * z};
  }
};

}  // namespace flax_lstm
