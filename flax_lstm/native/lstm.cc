// The loops of `implementation='native'` as XLA calls them; arguments and results are in
// the order of `_native_operands.py`.

#include <algorithm>
#include <cstdint>
#include <new>

#include "arguments.h"
#include "backward.h"
#include "forward.h"
#include "layer.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using flax_lstm::Next;

void read_x(Next& next, flax_lstm::Layer& layer, const float*& x) {
  const ffi::AnyBuffer buffer = next.buffer();
  layer.steps = buffer.dimensions()[0];
  layer.batch = buffer.dimensions()[1];
  layer.inputs = buffer.dimensions()[2];
  x = buffer.typed_data<float>();
}

void read_h_0(Next& next, flax_lstm::Layer& layer, const float*& h_0) {
  const ffi::AnyBuffer buffer = next.buffer();
  layer.units = buffer.dimensions()[1];
  h_0 = buffer.typed_data<float>();
}

// Calls run(), and tells XLA if there was too little memory.
template <typename Run>
ffi::Error result_of(const Run& run) {
  try {
    run();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "flax_lstm: not enough memory for a layer's weights");
  }
  return ffi::Error::Success();
}

template <typename Cell, bool keeps>
ffi::Error forward(ffi::ThreadPool pool, bool reverse, int64_t threads,
                   ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  flax_lstm::Forward<Cell> loop;
  Next next(arguments, results);
  read_x(next, loop, loop.x);
  next.read(loop.w_x);
  next.read(loop.w_h);
  next.read(loop.bias);
  read_h_0(next, loop, loop.h_0);
  next.read(loop.c_0);
  loop.valid = next.valid();
  next.write(loop.y);
  next.write(loop.h_n);
  next.write(loop.c_n);
  if constexpr (keeps) next.write(loop.kept);
  loop.reverse = reverse;
  loop.share_out(threads);
  return result_of([&] { loop.template run<keeps>(pool); });
}

template <typename Cell>
ffi::Error backward(ffi::ThreadPool pool, bool reverse, bool needs_x, int64_t threads,
                    ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  flax_lstm::Backward<Cell> loop;
  Next next(arguments, results);
  read_x(next, loop, loop.x);
  next.read(loop.w_x);
  next.read(loop.w_h);
  read_h_0(next, loop, loop.h_0);
  next.read(loop.y);
  const float* gates[flax_lstm::kGates];
  next.read(gates);
  next.read(loop.c);
  next.read(loop.d_y);
  next.read(loop.d_h_n);
  next.read(loop.d_c_n);
  loop.valid = next.valid();
  loop.d_x = nullptr;
  if (needs_x) next.write(loop.d_x);
  next.write(loop.d_w_x);
  next.write(loop.d_w_h);
  next.write(loop.d_b);
  next.write(loop.d_h_0);
  next.write(loop.d_c_0);
  next.write(loop.d_z);
  const bool is_in_place = std::equal(gates, gates + flax_lstm::kGates, loop.d_z);
  if (loop.scratch_size() > 0 && !is_in_place) {
    return ffi::Error::InvalidArgument("the gates' gradients are not in the gates' memory");
  }
  loop.reverse = reverse;
  loop.share_out(threads);
  ffi::AnyBuffer scratch = next.result();
  if (static_cast<int64_t>(scratch.element_count()) < loop.scratch_size()) {
    return ffi::Error::InvalidArgument("the scratch array is too small");
  }
  loop.scratch = scratch.typed_data<float>();
  return result_of([&] { loop.run(pool); });
}

}  // namespace

#define FLAX_LSTM_FORWARD(Symbol, Cell, keeps)                               \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(Symbol, (forward<flax_lstm::Cell, keeps>),   \
                                ffi::Ffi::Bind()                             \
                                    .Ctx<ffi::ThreadPool>()                  \
                                    .Attr<bool>("reverse")                   \
                                    .Attr<int64_t>("threads")                \
                                    .RemainingArgs()                         \
                                    .RemainingRets())

#define FLAX_LSTM_BACKWARD(Symbol, Cell)                                     \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(Symbol, backward<flax_lstm::Cell>,           \
                                ffi::Ffi::Bind()                             \
                                    .Ctx<ffi::ThreadPool>()                  \
                                    .Attr<bool>("reverse")                   \
                                    .Attr<bool>("needs_x")                   \
                                    .Attr<int64_t>("threads")                \
                                    .RemainingArgs()                         \
                                    .RemainingRets())

FLAX_LSTM_FORWARD(FlaxLstmForward, Lstm, false);
FLAX_LSTM_FORWARD(FlaxLstmForwardKeeping, Lstm, true);
FLAX_LSTM_BACKWARD(FlaxLstmBackward, Lstm);
FLAX_LSTM_FORWARD(FlaxGruForward, Gru, false);
FLAX_LSTM_FORWARD(FlaxGruForwardKeeping, Gru, true);
FLAX_LSTM_BACKWARD(FlaxGruBackward, Gru);
