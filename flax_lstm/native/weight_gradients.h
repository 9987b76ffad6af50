// The gradients of a layer's weights: one product over all steps, after the backward
// loop.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "layer.h"
#include "phases.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace flax_lstm {

struct WeightGradients : Layer {
  const float* x;                   // (T, B, I)
  const float *h_0, *y;             // (B, H), (T, B, H)
  float* d_z[kGates];               // (T, B, H); before the loop, the gates themselves.
  GateGradients d_w_x, d_w_h, d_b;  // (I, H), (H, H), (H,)
  unsigned of_x, of_h;  // The gates that are products of x and of h, a bit each.
  float* scratch;  // (scratch_size(),): [x, h, 1] in chunks of rows, tiles of columns.

  int64_t scratch_size() const { return chunks() * chunk_size(); }

 protected:
  int64_t width() const { return kGates * units; }

  void give_weights(xla::ffi::ThreadPool& pool) const {
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
  static constexpr int64_t kRowsAtOnce = 128;

  // The h that the s-th step of a row started from. In reverse, a row starts after its
  // padding, where outputs are zero.
  const float* h_before(int64_t s, int64_t row) const {
    if (s == 0 || !counts(time(s - 1), row)) return h_0 + row * units;
    return y + (time(s - 1) * batch + row) * units;
  }

  // The weights' gradients are [x, h, 1]ᵀ (·, T·B)·dz (T·B, 4·H). For each chunk of
  // chunk_rows rows, the left factor is stored in the order in which it is read: kRows
  // columns of all rows, then the next kRows.
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
          if (!is_needed(first_panel + panel, tile)) continue;
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

  // Whether any of a panel's columns is of a gate that one of a tile's rows is read for.
  bool is_needed(int64_t panel, int64_t tile) const {
    const int64_t row = tile * kRows, end = std::min(row + kRows, ins());
    if (of_x == of_h || end == ins()) return true;  // The last row is the biases'.
    const unsigned gates = (row < inputs ? of_x : 0u) | (end > inputs ? of_h : 0u);
    bool any = false;
    in_pieces(panel, [&](int64_t gate, int64_t, int64_t) { any |= gates >> gate & 1; });
    return any;
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
