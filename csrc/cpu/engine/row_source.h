// Rows of data that networks are trained on. Plain C++, no torch. Wants FASTMLP_KERNELS with
// "rows_kernels.h" to be included before.
#pragma once
#include <vector>

#include "cpu/engine/steps.h"

namespace fastmlp {

enum class Number : int64_t { kFloat, kDouble, kByte };

// Data as an operator gets it: x (rows, features), targets (rows, outputs) or labels (rows), and
// what may be null.
struct RowData {
  const void* x;
  Number x_type;
  // Where x is sparse: the numbers of row r are those from starts[r] on, in these columns.
  const int32_t* columns;
  const int64_t* starts;
  int64_t rows, features;
  const int64_t* labels;
  const uint8_t* byte_labels;
  const double* targets;
  const float* float_targets;
  const double* row_weights;
  const double* class_weight;
  const double* scale;  // (features), as is shift
  const double* shift;

  int64_t x_bytes() const { return x_type == Number::kByte ? 1 : x_type == Number::kFloat ? 4 : 8; }
  bool sparse() const { return starts; }
  int64_t label(int64_t row) const { return labels ? labels[row] : byte_labels[row]; }
};

// Reads rows of it as the inputs of a network of T. Bytes are scaled in float, as images are
// everywhere.
template <typename T>
class RowReader {
 public:
  explicit RowReader(const RowData& data)
      : data_(data),
        bytes_(data.x_bytes() * data.features),
        scale_(narrowed(data.scale)),
        shift_(narrowed(data.shift)),
        wide_(data.x_type == Number::kDouble ||
              (data.x_type == Number::kFloat && sizeof(T) == sizeof(double))) {
    if (data.x_type == Number::kByte) {
      read_ = FASTMLP_BEST_ISA(read_row<T, uint8_t, float>);
    } else if (data.x_type == Number::kDouble) {
      read_ = FASTMLP_BEST_ISA(read_row<T, double, double>);
    } else {
      read_ = FASTMLP_BEST_ISA(read_row<T, float, T>);
    }
  }

  void read(int64_t row, T* to) const {
    read_(at(row), wide_ ? data_.scale : pointer(data_.scale, scale_),
          wide_ ? data_.shift : pointer(data_.shift, shift_), data_.features, to);
  }

  // Asks for a row that will be read soon.
  void prefetch(int64_t row) const {
    const char* begin = at(row);
    for (int64_t i = 0; i < bytes_; i += 64) __builtin_prefetch(begin + i);
  }

 private:
  const char* at(int64_t row) const { return static_cast<const char*>(data_.x) + row * bytes_; }

  std::vector<float> narrowed(const double* numbers) const {
    return numbers ? std::vector<float>(numbers, numbers + data_.features) : std::vector<float>{};
  }

  static const void* pointer(const double* given, const std::vector<float>& mine) {
    return given ? mine.data() : nullptr;
  }

  const RowData& data_;
  int64_t bytes_;
  std::vector<float> scale_, shift_;
  bool wide_;  // scale and shift are taken as doubles
  void (*read_)(const void*, const void*, const void*, int64_t, T*);
};

}  // namespace fastmlp
