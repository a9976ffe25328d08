// The numbers of a batch of sparse rows, by row and by column. Plain C++, no torch. Wants
// FASTMLP_KERNELS "steps_kernels.h" to be included before.
#pragma once
#include <vector>

#include "cpu/engine/row_source.h"

namespace fastmlp {

template <typename T>
class SparseBatch {
 public:
  explicit SparseBatch(const RowData& data) : data_(data) {}

  // Takes these rows' numbers.
  void open(const int64_t* rows, int64_t count) {
    starts_.assign(1, 0);
    places_.clear();
    values_.clear();
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t i = data_.starts[rows[m]]; i < data_.starts[rows[m] + 1]; ++i) {
        places_.push_back(data_.columns[i]);
        values_.push_back(data_.x_type == Number::kDouble
                              ? static_cast<T>(static_cast<const double*>(data_.x)[i])
                              : static_cast<T>(static_cast<const float*>(data_.x)[i]));
      }
      starts_.push_back(places_.size());
    }
  }

  // Sorts them by column, those of a column by row, for the gradients.
  void sort() {
    column_starts_.assign(data_.features + 1, 0);
    for (int32_t column : places_) ++column_starts_[column + 1];
    for (int64_t c = 0; c < data_.features; ++c) column_starts_[c + 1] += column_starts_[c];
    column_places_.resize(places_.size());
    column_values_.resize(places_.size());
    // Each column's start moves on to its end, which is the next one's start, and back again.
    for (size_t m = 0; m + 1 < starts_.size(); ++m) {
      for (int64_t i = starts_[m]; i < starts_[m + 1]; ++i) {
        const int64_t at = column_starts_[places_[i]]++;
        column_places_[at] = static_cast<int32_t>(m);
        column_values_[at] = values_[i];
      }
    }
    for (int64_t c = data_.features; c > 0; --c) column_starts_[c] = column_starts_[c - 1];
    column_starts_[0] = 0;
  }

  SparseMatrix<T> rows() const { return {starts_.data(), places_.data(), values_.data()}; }
  SparseMatrix<T> columns() const {
    return {column_starts_.data(), column_places_.data(), column_values_.data()};
  }

 private:
  const RowData& data_;
  std::vector<int64_t> starts_, column_starts_;
  std::vector<int32_t> places_, column_places_;
  std::vector<T> values_, column_values_;
};

}  // namespace fastmlp
