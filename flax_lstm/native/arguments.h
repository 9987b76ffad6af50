// What XLA passes to a call with any number of arrays.

#pragma once

#include <cstddef>
#include <cstdint>

#include "xla/ffi/api/ffi.h"

namespace flax_lstm {

namespace ffi = xla::ffi;

// Arguments and results of a call, one after another.
class Next {
 public:
  Next(ffi::RemainingArgs arguments, ffi::RemainingRets results)
      : arguments_(arguments), results_(results) {}

  ffi::AnyBuffer buffer() {
    return arguments_.get<ffi::AnyBuffer>(argument_++).value();
  }
  void read(const float*& array) { array = buffer().typed_data<float>(); }
  void write(float*& array) { array = result().typed_data<float>(); }
  template <size_t N>
  void read(const float* (&arrays)[N]) {
    for (const float*& array : arrays) read(array);
  }
  template <size_t N>
  void write(float* (&arrays)[N]) {
    for (float*& array : arrays) write(array);
  }
  ffi::AnyBuffer result() {
    return *results_.get<ffi::AnyBuffer>(result_++).value();
  }
  // The last argument, which may be missing.
  const bool* valid() {
    return argument_ < arguments_.size() ? buffer().typed_data<bool>() : nullptr;
  }

 private:
  ffi::RemainingArgs arguments_;
  ffi::RemainingRets results_;
  size_t argument_ = 0, result_ = 0;
};

}  // namespace flax_lstm
