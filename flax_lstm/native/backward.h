// The gradients of a layer, of an LSTM or a GRU, from what its forward loop has saved.
//
// The loop runs from the last step to the first and computes, for some rows at a time, the
// gates' gradients dz and one product, dz·[W_h, W_x]ᵀ, which gives the gradients of the
// step's h and x. dz overwrites the gates; after the loop it gives the weights' gradients.

#pragma once

#include <algorithm>
#include <cstdint>

#include "cells.h"
#include "layer.h"
#include "phases.h"
#include "vectors.h"
#include "weight_gradients.h"
#include "xla/ffi/api/ffi.h"

namespace flax_lstm {

template <typename Cell>
struct Backward : WeightGradients {
  Gates w_x, w_h;                    // (I, H), (H, H)
  const float* c;                    // (T, B, H), which the steps started from.
  const float *d_y, *d_h_n, *d_c_n;  // (T, B, H), (B, H), (B, H)
  float* d_x;                        // (T, B, I), or null if it is not needed.
  float *d_h_0, *d_c_0;              // (B, H); during the loop, those of h and c.

  void run(xla::ffi::ThreadPool& pool) {
    of_x = Cell::kOfX;
    of_h = Cell::kOfH;
    const int64_t h_panels = divided_up(units, kPanel);
    const int64_t x_panels = d_x == nullptr ? 0 : divided_up(inputs, kPanel);
    const int64_t panels = h_panels + x_panels;
    in_place_ = batch <= kFewRows &&
                (batch * steps <= kFewInAll ? has_medium_weights() : has_large_weights());
    const Scratch weights(in_place_ ? 0 : panels * panel_size());
    packed_h_ = weights.get();
    packed_x_ = packed_h_ + h_panels * panel_size();
    std::copy_n(d_h_n, batch * units, d_h_0);
    std::copy_n(d_c_n, batch * units, d_c_0);

    in_phases(pool, threads, 1, in_place_ ? 0 : panels, [&](int64_t, int64_t panel) {
      if (panel < h_panels) {
        pack<Cell::kOfH>(w_h, units, packed_h_, panel);
      } else {
        pack<Cell::kOfX>(w_x, inputs, packed_x_, panel - h_panels);
      }
    });
    const auto give_h = [&](int64_t s, int64_t panel, Share rows) {
      const int64_t t = time(s);
      multiply<Cell::kOfH>({t * batch, w_h, packed_h_, d_h_0, units, t}, panel, rows);
    };
    const auto give_x = [&](int64_t t, int64_t panel, Share rows) {
      float* to = d_x + t * batch * inputs;
      multiply<Cell::kOfX>({t * batch, w_x, packed_x_, to, inputs}, panel, rows);
    };
    if (by_units) {
      // A step is two phases: all gates' gradients first, then what they give.
      const int64_t items = std::max(h_panels, threads);
      in_phases(pool, threads, 2 * steps, items, [&](int64_t phase, int64_t item) {
        const int64_t s = steps - 1 - phase / 2;
        if (phase % 2 == 0) {
          if (item < threads) gates_of(s, share_of(batch, item, threads));
        } else if (item < h_panels) {
          give_h(s, item, {0, batch});
        }
      });
      // Outside the loop, so that W_x is read only once.
      in_phases(pool, threads, 1, x_panels, [&](int64_t, int64_t panel) {
        give_x(0, panel, {0, steps * batch});
      });
    } else {
      in_phases(pool, threads, 1, parts, [&](int64_t, int64_t part) {
        const Share rows = rows_of(part);
        for (int64_t s = steps - 1; s >= 0; --s) {
          gates_of(s, rows);
          for (int64_t panel = 0; panel < h_panels; ++panel) give_h(s, panel, rows);
          for (int64_t panel = 0; panel < x_panels; ++panel) give_x(time(s), panel, rows);
        }
      });
    }
    give_weights(pool);
  }

 private:
  // Units whose rows of a panel are multiplied at once, so that those stay in the cache.
  static constexpr int64_t kUnitsAtOnce = 128;

  // For at most kFewRows rows, packing large weights costs more than it gains; for at most
  // kFewInAll rows of all steps together, so does packing medium ones.
  static constexpr int64_t kFewRows = 6;
  static constexpr int64_t kFewInAll = 64;

  bool in_place_;                // Weights are read as they are.
  float *packed_h_, *packed_x_;  // Else panels of transposed weights.

  int64_t panel_size() const { return width() * kPanel; }

  // kPanel of the rows of [w_i, w_f, w_g, w_o] (outs, 4·H), as columns; the last panel
  // may have fewer. There is room for all, but only `gates` are read and written.
  template <unsigned gates>
  void pack(const Gates& w, int64_t outs, float* packed, int64_t panel) const {
    constexpr int64_t kAtOnce = 16;  // So few that the lines written stay cached.
    const int64_t first = panel * kPanel, count = std::min(kPanel, outs - first);
    const int64_t columns = divided_up(count, kLanes) * kLanes;
    float* to = packed + panel * panel_size();
    for (int gate = 0; gate < kGates; ++gate, to += units * columns) {
      if (!(gates >> gate & 1)) continue;
      for (int64_t start = 0; start < units; start += kAtOnce) {
        const int64_t end = std::min(start + kAtOnce, units);
        for (int64_t column = 0; column < columns; ++column) {
          const float* from = w[gate] + (first + column) * units;
          for (int64_t k = start; k < end; ++k) {
            to[k * columns + column] = column < count ? from[k] : 0.0f;
          }
        }
      }
    }
  }

  // dz of the s-th step from its dh, and dc of the step before.
  void gates_of(int64_t s, Share rows) const {
    const int64_t t = time(s);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (!counts(t, row)) {
        const int64_t in_steps = (t * batch + row) * units;
        for (float* d_gate : d_z) std::fill_n(d_gate + in_steps, units, 0.0f);
        continue;
      }
      for (int64_t unit = 0; unit < units; unit += kLanes) {
        const int64_t count = units - unit, in_state = row * units + unit;
        const int64_t in_steps = t * batch * units + in_state;
        Vector gates[kGates];
        for (int n = 0; n < kGates; ++n) gates[n] = load(d_z[n] + in_steps, count);
        const Vector c_before = load(c + in_steps, count);
        const Vector d_h = load(d_h_0 + in_state, count) + load(d_y + in_steps, count);
        const Vector d_c = load(d_c_0 + in_state, count);
        const StepGradients given = Cell::gradients(gates, c_before, d_c, d_h);
        for (int n = 0; n < kGates; ++n) store(d_z[n] + in_steps, given.z[n], count);
        store(d_c_0 + in_state, given.c, count);
      }
    }
  }

  // to (rows, outs) = dz (rows, 4·H)·Wᵀ, of which one call computes a panel's columns; dz's
  // rows begin at first_row among the rows of all steps. Rows that don't count at time t
  // keep their values.
  struct Product {
    static constexpr int64_t kNoTime = -1;

    int64_t first_row;
    const Gates& w;
    const float* packed;
    float* to;
    int64_t outs, t = kNoTime;
  };

  template <unsigned gates>
  void multiply(const Product& product, int64_t panel, Share rows) const {
    if (in_place_) return multiply_in_place<gates>(product, panel, rows);
    const int64_t count = std::min(kPanel, product.outs - panel * kPanel);
    switch (divided_up(count, kLanes)) {
      case 1: return multiply_packed<gates, 1>(product, panel, count, rows);
      case 2: return multiply_packed<gates, 2>(product, panel, count, rows);
      case 3: return multiply_packed<gates, 3>(product, panel, count, rows);
      default: return multiply_packed<gates, 4>(product, panel, count, rows);
    }
  }

  bool keeps(const Product& product, int64_t row) const {
    return product.t != Product::kNoTime && !counts(product.t, row);
  }

  template <unsigned gates, int N>
  void multiply_packed(const Product& product, int64_t panel, int64_t count,
                       Share rows) const {
    const float* weights = product.packed + panel * panel_size();
    float* to = product.to + panel * kPanel;
    for (int64_t unit = 0; unit < units; unit += kUnitsAtOnce) {
      in_tiles(rows.begin, rows.end, [&]<int R>(int64_t first) {
        bool adds[R];
        for (int r = 0; r < R; ++r) adds[r] = unit > 0 || keeps(product, first + r);
        multiply_tile<gates, R, N>(product.first_row + first, unit, weights,
                                   to + first * product.outs, product.outs, count, adds);
      });
    }
  }

  // Some rows of that product, over kUnitsAtOnce units of every gate. A separate function:
  // inlined into the loops above, GCC kept some of the sums in memory.
  template <unsigned gates, int R, int N>
  __attribute__((noinline)) void multiply_tile(int64_t first, int64_t unit,
                                               const float* weights, float* to,
                                               int64_t outs, int64_t count,
                                               const bool (&adds)[R]) const {
    const int64_t depth = std::min(kUnitsAtOnce, units - unit);
    Vector sums[R][N];
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < N; ++n) {
        const int64_t column = n * kLanes;
        sums[r][n] = adds[r] ? load(to + r * outs + column, count - column) : Vector{};
      }
    }
    for (int gate : gates_in<gates>()) {
      const float* panel = weights + (gate * units + unit) * N * kLanes;
      add_products(sums, d_z[gate] + first * units + unit, units, panel, depth);
    }
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < N; ++n) {
        const int64_t column = n * kLanes;
        store(to + r * outs + column, sums[r][n], count - column);
      }
    }
  }

  // Rows of W and of dz are contiguous along the axis that is summed over.
  template <unsigned gates>
  void multiply_in_place(const Product& product, int64_t panel, Share rows) const {
    constexpr int kColumns = 4;
    const int64_t end = std::min((panel + 1) * kPanel, product.outs);
    in_tiles<kColumns>(panel * kPanel, end, [&]<int C>(int64_t column) {
      in_tiles(rows.begin, rows.end, [&]<int R>(int64_t first) {
        Vector sums[R][C] = {};
        for (int gate : gates_in<gates>()) {
          const float* d_gate = d_z[gate] + (product.first_row + first) * units;
          const float* w = product.w[gate] + column * units;
          const auto add = [&](int64_t unit, int64_t count)
                               __attribute__((always_inline)) {
            Vector d_z_of[R];
            for (int r = 0; r < R; ++r) {
              d_z_of[r] = load(d_gate + r * units + unit, count);
            }
            for (int c = 0; c < C; ++c) {
              const Vector weights = load(w + c * units + unit, count);
              for (int r = 0; r < R; ++r) sums[r][c] += d_z_of[r] * weights;
            }
          };
          int64_t unit = 0;
          for (; unit + kLanes <= units; unit += kLanes) add(unit, kLanes);
          if (unit < units) add(unit, units - unit);
        }
        for (int r = 0; r < R; ++r) {
          float* to = product.to + (first + r) * product.outs + column;
          const bool adds = keeps(product, first + r);
          for (int c = 0; c < C; ++c) to[c] = sum(sums[r][c]) + (adds ? to[c] : 0.0f);
        }
      });
    });
  }
};

}  // namespace flax_lstm
