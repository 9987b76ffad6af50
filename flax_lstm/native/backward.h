// The gradients of an LSTM layer, from what its forward loop has saved.
//
// The loop runs from the last step to the first and computes, for some rows at a time, the
// gates' gradients dz and one product, dz·[W_h, W_x]ᵀ, which gives the gradients of the
// step's h and x. The weights' gradients are one product over all steps after the loop. dz
// overwrites the gates.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "layer.h"
#include "phases.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace flax_lstm {

struct Backward : Layer {
  const float* x;                    // (T, B, I)
  Gates w_x, w_h;                    // (I, H), (H, H)
  const float *h_0, *y;              // (B, H), (T, B, H)
  float* d_z[kGates];                // (T, B, H); on entry, the gates themselves.
  const float* c;                    // (T, B, H), which the steps started from.
  const float *d_y, *d_h_n, *d_c_n;  // (T, B, H), (B, H), (B, H)
  float* d_x;                        // (T, B, I), or null if it is not needed.
  GateGradients d_w_x, d_w_h, d_b;   // (I, H), (H, H), (H,)
  float *d_h_0, *d_c_0;              // (B, H); during the loop, those of h and c.
  float* scratch;  // (scratch_size(),): [x, h, 1] in chunks of rows, tiles of columns.

  int64_t scratch_size() const { return chunks() * chunk_size(); }

  void run(xla::ffi::ThreadPool& pool) {
    const int64_t h_panels = divided_up(units, kPanel);
    const int64_t x_panels = d_x == nullptr ? 0 : divided_up(inputs, kPanel);
    const int64_t panels = h_panels + x_panels;
    in_place_ = batch <= kFewRows &&
                (batch * steps <= kFewInAll ? has_medium_weights() : has_large_weights());
    const Scratch weights(in_place_ ? 0 : panels * panel_size());
    packed_h_ = weights.get();
    packed_x_ = packed_h_ + h_panels * panel_size();
    std::memcpy(d_h_0, d_h_n, batch * units * sizeof(float));
    std::memcpy(d_c_0, d_c_n, batch * units * sizeof(float));

    in_phases(pool, threads, 1, in_place_ ? 0 : panels, [&](int64_t, int64_t panel) {
      if (panel < h_panels) {
        pack(w_h, units, packed_h_, panel);
      } else {
        pack(w_x, inputs, packed_x_, panel - h_panels);
      }
    });
    const auto give_h = [&](int64_t s, int64_t panel, Share rows) {
      const int64_t t = time(s);
      multiply({t * batch, w_h, packed_h_, d_h_0, units, t}, panel, rows);
    };
    const auto give_x = [&](int64_t t, int64_t panel, Share rows) {
      float* to = d_x + t * batch * inputs;
      multiply({t * batch, w_x, packed_x_, to, inputs}, panel, rows);
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
    in_phases(pool, threads, 1, chunks(),
              [&](int64_t, int64_t chunk) { pack_ins(chunk); });
    const int64_t columns = divided_up(width(), kPanel), at_once = panels_at_once();
    in_phases(pool, threads, 1, divided_up(columns, at_once),
              [&](int64_t, int64_t item) {
                const int64_t first = item * at_once;
                weights_of(first, std::min(at_once, columns - first));
              });
  }

 private:
  // Units whose rows of a panel are multiplied at once, so that those stay in the cache.
  static constexpr int64_t kUnitsAtOnce = 128;
  static constexpr int64_t kRowsAtOnce = 128;

  // For at most kFewRows rows, packing large weights costs more than it gains; for at most
  // kFewInAll rows of all steps together, so does packing medium ones.
  static constexpr int64_t kFewRows = 6;
  static constexpr int64_t kFewInAll = 64;

  bool in_place_;                // Weights are read as they are.
  float *packed_h_, *packed_x_;  // Else panels of transposed weights.

  int64_t width() const { return kGates * units; }
  int64_t panel_size() const { return width() * kPanel; }

  // kPanel of the rows of [w_i, w_f, w_g, w_o] (outs, 4·H), as columns; the last panel
  // may have fewer.
  void pack(const Gates& w, int64_t outs, float* packed, int64_t panel) const {
    constexpr int64_t kAtOnce = 16;  // So few that the lines written stay cached.
    const int64_t first = panel * kPanel, count = std::min(kPanel, outs - first);
    const int64_t columns = divided_up(count, kLanes) * kLanes;
    float* to = packed + panel * panel_size();
    for (int gate = 0; gate < kGates; ++gate, to += units * columns) {
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
        const auto [i, f, g, o] = gates;
        const Vector c_before = load(c + in_steps, count);
        const Vector tanh_c = tanh(f * c_before + i * g);
        const Vector d_h = load(d_h_0 + in_state, count) + load(d_y + in_steps, count);
        const Vector d_c =
            load(d_c_0 + in_state, count) + d_h * o * (1.0f - tanh_c * tanh_c);
        store(d_z[kI] + in_steps, d_c * g * i * (1.0f - i), count);
        store(d_z[kF] + in_steps, d_c * c_before * f * (1.0f - f), count);
        store(d_z[kG] + in_steps, d_c * i * (1.0f - g * g), count);
        store(d_z[kO] + in_steps, d_h * tanh_c * o * (1.0f - o), count);
        store(d_c_0 + in_state, d_c * f, count);
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

  void multiply(const Product& product, int64_t panel, Share rows) const {
    if (in_place_) return multiply_in_place(product, panel, rows);
    const int64_t count = std::min(kPanel, product.outs - panel * kPanel);
    switch (divided_up(count, kLanes)) {
      case 1: return multiply_packed<1>(product, panel, count, rows);
      case 2: return multiply_packed<2>(product, panel, count, rows);
      case 3: return multiply_packed<3>(product, panel, count, rows);
      default: return multiply_packed<4>(product, panel, count, rows);
    }
  }

  bool keeps(const Product& product, int64_t row) const {
    return product.t != Product::kNoTime && !counts(product.t, row);
  }

  template <int N>
  void multiply_packed(const Product& product, int64_t panel, int64_t count,
                       Share rows) const {
    const float* weights = product.packed + panel * panel_size();
    float* to = product.to + panel * kPanel;
    for (int64_t unit = 0; unit < units; unit += kUnitsAtOnce) {
      in_tiles(rows.begin, rows.end, [&]<int R>(int64_t first) {
        bool adds[R];
        for (int r = 0; r < R; ++r) adds[r] = unit > 0 || keeps(product, first + r);
        multiply_tile<R, N>(product.first_row + first, unit, weights,
                            to + first * product.outs, product.outs, count, adds);
      });
    }
  }

  // Some rows of that product, over kUnitsAtOnce units of every gate. A separate function:
  // inlined into the loops above, GCC kept some of the sums in memory.
  template <int R, int N>
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
    for (int gate = 0; gate < kGates; ++gate) {
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
  void multiply_in_place(const Product& product, int64_t panel, Share rows) const {
    constexpr int kColumns = 4;
    const int64_t end = std::min((panel + 1) * kPanel, product.outs);
    in_tiles<kColumns>(panel * kPanel, end, [&]<int C>(int64_t column) {
      in_tiles(rows.begin, rows.end, [&]<int R>(int64_t first) {
        Vector sums[R][C] = {};
        for (int gate = 0; gate < kGates; ++gate) {
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

  // The h that the s-th step of a row started from. In reverse, a row starts after its
  // padding, where outputs are zero.
  const float* h_before(int64_t s, int64_t row) const {
    if (s == 0 || !counts(time(s - 1), row)) return h_0 + row * units;
    return y + (time(s - 1) * batch + row) * units;
  }

  // The weights' gradients are [x, h, 1]ᵀ (·, T·B)·dz (T·B, 4·H). For
  // each chunk of chunk_rows rows, the left factor is stored in the order in which it is
  // read: kRows columns of all rows, then the next kRows.
  int64_t ins() const { return inputs + units + 1; }
  int64_t tiles() const { return divided_up(ins(), kRows); }
  int64_t chunk_rows() const { return std::min(kRowsAtOnce, steps * batch); }
  int64_t chunks() const {
    return steps * batch == 0 ? 0 : divided_up(steps * batch, chunk_rows());
  }
  int64_t chunk_size() const { return tiles() * kRows * chunk_rows(); }

  void pack_ins(int64_t chunk) const {
    const int64_t start = chunk * chunk_rows();
    const int64_t depth = std::min(chunk_rows(), steps * batch - start);
    const Scratch memory(tiles() * kRows);
    float* in = memory.get();
    std::fill_n(in + ins() - 1, tiles() * kRows - ins() + 1, 1.0f);
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t s = (start + k) / batch, row = (start + k) % batch;
      std::memcpy(in, x + (time(s) * batch + row) * inputs, inputs * sizeof(float));
      std::memcpy(in + inputs, h_before(s, row), units * sizeof(float));
      float* to = scratch + chunk * chunk_size() + k * kRows;
      for (int64_t tile = 0; tile < tiles(); ++tile) {
        std::memcpy(to + tile * chunk_rows() * kRows, in + tile * kRows,
                    kRows * sizeof(float));
      }
    }
  }

  // How many panels are multiplied with each of a chunk's tiles: as many as leave their
  // sums room in a core's cache, next to the chunk.
  int64_t panels_at_once() const {
    constexpr int64_t kCachedBytes = 1 << 19;
    const int64_t bytes = sizeof(float) * ins() * kPanel;
    const int64_t a_thread = divided_up(divided_up(width(), kPanel), threads);
    return std::clamp<int64_t>(kCachedBytes / bytes, 1, a_thread);
  }

  // Computes some panels of the weights' gradients, of kPanel columns each.
  void weights_of(int64_t first_panel, int64_t panels) const {
    const int64_t total = steps * batch, z_size = chunk_rows() * kPanel;
    const int64_t sums_size = tiles() * kRows * kPanel;
    const Scratch memory(panels * (z_size + sums_size));
    float* columns = memory.get();            // (panels, chunk_rows, kPanel) of dz
    float* sums = columns + panels * z_size;  // (panels, ins, kPanel)
    std::fill_n(sums, panels * sums_size, 0.0f);
    // Zeros after the last column.
    if (width() % kPanel != 0) std::fill_n(columns + (panels - 1) * z_size, z_size, 0.0f);
    for (int64_t start = 0; start < total; start += chunk_rows()) {
      const int64_t depth = std::min(chunk_rows(), total - start);
      for (int64_t panel = 0; panel < panels; ++panel) {
        copy_columns(first_panel + panel, start, depth, columns + panel * z_size);
      }
      const float* chunk = scratch + start / chunk_rows() * chunk_size();
      for (int64_t tile = 0; tile < tiles(); ++tile) {
        for (int64_t panel = 0; panel < panels; ++panel) {
          add_outer_products(sums + panel * sums_size + tile * kRows * kPanel,
                             chunk + tile * chunk_rows() * kRows,
                             columns + panel * z_size, depth);
        }
      }
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t row = 0; row < ins(); ++row) {
        const float* from = sums + panel * sums_size + row * kPanel;
        if (row < inputs) {
          write_columns(first_panel + panel, from, d_w_x, row);
        } else if (row < ins() - 1) {
          write_columns(first_panel + panel, from, d_w_h, row - inputs);
        } else {
          write_columns(first_panel + panel, from, d_b, 0);
        }
      }
    }
  }

  // Calls piece(gate, unit, count) for the ranges of units that a panel's columns cover.
  template <typename Piece>
  void in_pieces(int64_t panel, const Piece& piece) const {
    const int64_t end = std::min((panel + 1) * kPanel, width());
    for (int64_t column = panel * kPanel; column < end;) {
      const int64_t gate = column / units, unit = column % units;
      const int64_t count = std::min(units - unit, end - column);
      piece(gate, unit, count);
      column += count;
    }
  }

  // A panel's columns of dz, of `depth` rows in the steps' order from `start` on.
  void copy_columns(int64_t panel, int64_t start, int64_t depth, float* to) const {
    in_pieces(panel, [&](int64_t gate, int64_t unit, int64_t count) {
      int64_t s = start / batch, row = start % batch;
      for (int64_t k = 0; k < depth; ++k) {
        const float* from = d_z[gate] + (time(s) * batch + row) * units + unit;
        for (int64_t lane = 0; lane < count; lane += kLanes) {
          const int64_t rest = count - lane;
          store(to + k * kPanel + lane, load(from + lane, rest), rest);
        }
        if (++row == batch) {
          row = 0;
          ++s;
        }
      }
      to += count;
    });
  }

  // A panel's columns of one row of [to_i, to_f, to_g, to_o] (·, 4·H).
  void write_columns(int64_t panel, const float* from, const GateGradients& to,
                     int64_t row) const {
    in_pieces(panel, [&](int64_t gate, int64_t unit, int64_t count) {
      std::memcpy(to[gate] + row * units + unit, from, count * sizeof(float));
      from += count;
    });
  }

  // sums (kRows, kPanel) += Σ_k in[k] ⊗ panel[k], which is added up by itself first:
  // one sum over all steps of all rows would lose digits to its own size.
  static void add_outer_products(float* sums, const float* in, const float* panel,
                                 int64_t count) {
    Vector acc[kRows][kGates] = {};
    for (int64_t k = 0; k < count; ++k, in += kRows, panel += kPanel) {
      Vector factors[kRows];
      for (int r = 0; r < kRows; ++r) factors[r] = splat(in[r]);
      for (int n = 0; n < kGates; ++n) {
        const Vector row = load(panel + n * kLanes);
        for (int r = 0; r < kRows; ++r) acc[r][n] += factors[r] * row;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int n = 0; n < kGates; ++n) {
        float* to = sums + r * kPanel + n * kLanes;
        store(to, load(to) + acc[r][n]);
      }
    }
  }
};

}  // namespace flax_lstm
