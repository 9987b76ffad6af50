// The loops of `implementation='native'` as XLA calls them; see `_native_lstm.py`,
// whose order of arguments and results this is.

#include <cstdint>

#include "backward.h"
#include "forward.h"
#include "layer.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// Positions of what is asked for by name; the others follow one another.
constexpr int kX = 0, kForwardH0 = 4, kForwardValid = 6;
constexpr int kBackwardH0 = 3, kBackwardValid = 13;

auto dimensions(ffi::RemainingArgs args, int position) {
  return args.get<ffi::AnyBuffer>(position).value().dimensions();
}

template <typename T = float>
const T* argument(ffi::RemainingArgs args, int position) {
  const void* data = args.get<ffi::AnyBuffer>(position).value().untyped_data();
  return static_cast<const T*>(data);
}

float* result(ffi::RemainingRets results, int position) {
  return static_cast<float*>(
      results.get<ffi::AnyBuffer>(position).value()->untyped_data());
}

void describe(flax_lstm::Layer& layer, ffi::RemainingArgs args, int h_0, int valid,
              bool reverse, int64_t threads) {
  const auto of_x = dimensions(args, kX);
  layer.steps = of_x[0];
  layer.batch = of_x[1];
  layer.inputs = of_x[2];
  layer.units = dimensions(args, h_0)[1];
  layer.reverse = reverse;
  const bool has_lengths = args.size() > static_cast<size_t>(valid);
  layer.valid = has_lengths ? argument<bool>(args, valid) : nullptr;
  layer.share_out(threads);
}

template <bool keeps>
ffi::Error forward(ffi::ThreadPool pool, bool reverse, int64_t threads,
                   ffi::RemainingArgs args, ffi::RemainingRets results) {
  flax_lstm::Forward loop;
  describe(loop, args, kForwardH0, kForwardValid, reverse, threads);
  int next = 0;
  for (const float** array :
       {&loop.x, &loop.w_x, &loop.w_h, &loop.bias, &loop.h_0, &loop.c_0}) {
    *array = argument(args, next++);
  }
  next = 0;
  for (float** array : {&loop.y, &loop.h_n, &loop.c_n}) *array = result(results, next++);
  if constexpr (keeps) {
    for (float*& array : loop.kept) array = result(results, next++);
  }
  loop.run<keeps>(pool);
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, bool reverse, bool needs_x, int64_t threads,
                    ffi::RemainingArgs args, ffi::RemainingRets results) {
  flax_lstm::Backward loop;
  describe(loop, args, kBackwardH0, kBackwardValid, reverse, threads);
  int next = 0;
  for (const float** array : {&loop.x, &loop.w_x, &loop.w_h, &loop.h_0, &loop.y}) {
    *array = argument(args, next++);
  }
  for (const float*& array : loop.kept) array = argument(args, next++);
  for (const float** array : {&loop.d_y, &loop.d_h_n, &loop.d_c_n}) {
    *array = argument(args, next++);
  }
  next = 0;
  loop.d_x = needs_x ? result(results, next++) : nullptr;
  for (float** array :
       {&loop.d_w_x, &loop.d_w_h, &loop.d_b, &loop.d_h_0, &loop.d_c_0}) {
    *array = result(results, next++);
  }
  auto scratch = results.get<ffi::AnyBuffer>(next).value();
  if (static_cast<int64_t>(scratch->element_count()) < loop.scratch_size()) {
    return ffi::Error::InvalidArgument("the scratch array is too small");
  }
  loop.scratch = result(results, next);
  loop.run(pool);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(FlaxLstmForward, forward<false>,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("reverse")
                                  .Attr<int64_t>("threads")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(FlaxLstmForwardKeeping, forward<true>,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("reverse")
                                  .Attr<int64_t>("threads")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(FlaxLstmBackward, backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("needs_x")
                                  .Attr<int64_t>("threads")
                                  .RemainingArgs()
                                  .RemainingRets());
