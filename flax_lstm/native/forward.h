// A layer over time, of an LSTM or a GRU.
//
// The weights are packed once per call (those of x, if units are shared out, once per
// some 256 rows): kLanes units of all four gates side by side, so that one tile of the
// product [x, h]·W holds all that those units' next state needs, and the gates are
// computed before it leaves the registers.

#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "cells.h"
#include "layer.h"
#include "phases.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace flax_lstm {

template <typename Cell>
struct Forward : Layer {
  const float* x;          // (T, B, I)
  Gates w_x, w_h, bias;    // (I, H), (H, H), (H,)
  const float *h_0, *c_0;  // (B, H)
  float *y, *h_n, *c_n;    // (T, B, H), (B, H), (B, H)
  float* kept[kKept];      // (T, B, H) each, if `keeps`.

  template <bool keeps>
  void run(xla::ffi::ThreadPool& pool) {
    const int64_t blocks = divided_up(units, kLanes);
    const int64_t state_size = valid != nullptr ? batch * units : 0;
    const Scratch weights_h(blocks * h_panel_size());
    const Scratch weights_x((by_units ? threads : blocks) * x_panel_size());
    const Scratch states(2 * state_size);
    packed_h_ = weights_h.get();
    packed_x_ = weights_x.get();
    h_[0] = states.get();
    h_[1] = h_[0] + state_size;

    const auto pack_all = [&](int64_t, int64_t block) {
      pack<Cell::kOfH>(w_h, units, block, packed_h_ + block * h_panel_size());
      if (!by_units) pack_x(block, packed_x_ + block * x_panel_size());
    };
    in_phases(pool, threads, 1, blocks, pack_all);
    if (by_units) {
      const int64_t at_once = std::clamp<int64_t>(
          kRowsAhead / std::max<int64_t>(batch, 1), 1, steps);
      const Scratch products(blocks * at_once * batch * kPanel);
      z_x_ = products.get();
      for (int64_t start = 0; start < steps; start += at_once) {
        ahead_ = {start, std::min(start + at_once, steps)};
        in_phases(pool, threads, 1, threads, [&](int64_t, int64_t item) {
          float* panel = packed_x_ + item * x_panel_size();
          const Share share = share_of(blocks, item, threads);
          for (int64_t block = share.begin; block < share.end; ++block) {
            pack_x(block, panel);
            multiply_inputs(block, panel);
          }
        });
        const int64_t count = ahead_.end - ahead_.begin;
        in_phases(pool, threads, count, threads, [&](int64_t phase, int64_t item) {
          const Share share = share_of(blocks, item, threads);
          for (int64_t block = share.begin; block < share.end; ++block) {
            step<keeps>(start + phase, block, {0, batch});
          }
        });
      }
    } else {
      z_x_ = nullptr;
      in_phases(pool, threads, 1, parts, [&](int64_t, int64_t part) {
        const Share rows = rows_of(part);
        for (int64_t s = 0; s < steps; ++s) {
          for (int64_t block = 0; block < blocks; ++block) step<keeps>(s, block, rows);
        }
      });
    }
  }

 private:
  static constexpr int64_t kRowsAhead = 256;

  static constexpr int64_t kXPanel = std::popcount(Cell::kOfX) * kLanes;
  static constexpr int64_t kHPanel = std::popcount(Cell::kOfH) * kLanes;

  // A panel of a block's weights: (H, kHPanel), and the bias (kPanel,) with (I, kXPanel).
  // Where units are shared out, each thread has room for one of the latter.
  float *packed_h_, *packed_x_;
  // If units are shared out: x·W_x + b of the steps `ahead_`, in the order of time,
  // (blocks, steps, B, kPanel), so that W_x is read once for all of them. Otherwise it is
  // cheaper to multiply within each step than to store this.
  float* z_x_;
  Share ahead_;
  // With lengths: h before and after a step, since the outputs of padding are zero.
  float* h_[2];

  int64_t x_panel_size() const { return kPanel + inputs * kXPanel; }
  int64_t h_panel_size() const { return units * kHPanel; }

  // Packs some rows of the weights of `gates`, for a block of kLanes units.
  template <unsigned gates>
  float* pack(const Gates& from, int64_t rows, int64_t block, float* to) const {
    const int64_t unit = block * kLanes, count = units - unit;
    for (int64_t k = 0; k < rows; ++k) {
      for (int gate : gates_in<gates>()) {
        store(to, load(from[gate] + k * units + unit, count));
        to += kLanes;
      }
    }
    return to;
  }

  void pack_x(int64_t block, float* to) const {
    to = pack<kAllGates>(bias, 1, block, to);
    pack<Cell::kOfX>(w_x, inputs, block, to);
  }

  // Adds to the sums of `gates` only.
  template <unsigned gates, int R>
  static FLAX_LSTM_INLINE void add_products_of(Vector (&z)[R][kGates], const float* rows,
                                               int64_t stride, const float* panel,
                                               int64_t count) {
    constexpr auto each = gates_in<gates>();
    Vector sums[R][each.size()];
    for (int r = 0; r < R; ++r) {
      for (std::size_t n = 0; n < each.size(); ++n) sums[r][n] = z[r][each[n]];
    }
    add_products(sums, rows, stride, panel, count);
    for (int r = 0; r < R; ++r) {
      for (std::size_t n = 0; n < each.size(); ++n) z[r][each[n]] = sums[r][n];
    }
  }

  int64_t rows_ahead() const { return (ahead_.end - ahead_.begin) * batch; }

  // The first row of (T·B, ·) that belongs to the steps ahead.
  int64_t first_row_ahead() const {
    return (reverse ? steps - ahead_.end : ahead_.begin) * batch;
  }

  void multiply_inputs(int64_t block, const float* panel) const {
    const float* from = x + first_row_ahead() * inputs;
    float* to = z_x_ + block * rows_ahead() * kPanel;
    in_tiles(0, rows_ahead(), [&]<int R>(int64_t first) {
      Vector z[R][kGates];
      for (int r = 0; r < R; ++r) load_gates(z[r], panel);
      add_products_of<Cell::kOfX>(z, from + first * inputs, inputs, panel + kPanel, inputs);
      for (int r = 0; r < R; ++r) {
        float* row = to + (first + r) * kPanel;
        for (int gate = 0; gate < kGates; ++gate) store(row + gate * kLanes, z[r][gate]);
      }
    });
  }

  static void load_gates(Vector (&z)[kGates], const float* from) {
    for (int gate = 0; gate < kGates; ++gate) z[gate] = load(from + gate * kLanes);
  }

  // The s-th step of some rows, for a block of units.
  template <bool keeps>
  void step(int64_t s, int64_t block, Share rows) const {
    const float* h = s == 0            ? h_0
                     : valid != nullptr ? h_[s % 2]
                                        : y + time(s - 1) * batch * units;
    in_tiles(rows.begin, rows.end,
             [&]<int R>(int64_t row) { tile<R, keeps>(s, block, row, h); });
  }

  template <int R, bool keeps>
  void tile(int64_t s, int64_t block, int64_t first, const float* h) const {
    const int64_t t = time(s), unit = block * kLanes, count = units - unit;
    const int64_t step_row = t * batch + first;
    const float* h_rows = h + first * units;
    Vector z[R][kGates];
    if (z_x_ != nullptr) {
      const int64_t row = block * rows_ahead() + step_row - first_row_ahead();
      const float* from = z_x_ + row * kPanel;
      for (int r = 0; r < R; ++r) load_gates(z[r], from + r * kPanel);
    } else {
      const float* panel = packed_x_ + block * x_panel_size();
      for (int r = 0; r < R; ++r) load_gates(z[r], panel);
      add_products_of<Cell::kOfX>(z, x + step_row * inputs, inputs, panel + kPanel, inputs);
    }
    const float* panel_h = packed_h_ + block * h_panel_size();
    add_products_of<Cell::kOfH>(z, h_rows, units, panel_h, units);

    for (int r = 0; r < R; ++r) {
      const int64_t in_state = (first + r) * units + unit;
      const int64_t in_steps = t * batch * units + in_state;
      const Vector c = load((s == 0 ? c_0 : c_n) + in_state, count);
      const auto [gates, new_c, new_h] = Cell::step(z[r], c);
      const bool is_valid = counts(t, first + r);
      const Vector h_after = is_valid ? new_h : load(h_rows + r * units + unit, count);
      store(c_n + in_state, is_valid ? new_c : c, count);
      store(y + in_steps, is_valid ? new_h : Vector{}, count);
      if (valid != nullptr) store(h_[(s + 1) % 2] + in_state, h_after, count);
      if (s == steps - 1) store(h_n + in_state, h_after, count);
      if constexpr (keeps) {
        for (int n = 0; n < kGates; ++n) store(kept[n] + in_steps, gates[n], count);
        store(kept[kC] + in_steps, c, count);
      }
    }
  }
};

}  // namespace flax_lstm
