// The inputs of a block of steps: its images, each once, normalised, and their Gram matrix.
// Plain C++, no torch. Wants FASTMLP_KERNELS "blocked_kernels.h" to be included before.
#pragma once
#include <numeric>
#include <vector>

#include "flip_shift.h"
#include "team.h"

namespace fastmlp {

inline int64_t ceil_of(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// Images to train on, and how they become inputs.
struct Images {
  const uint8_t* pixels;  // (images, features)
  const int64_t* labels;  // (images)
  const float* scale;     // (features)
  const float* shift;     // (features)
  int64_t features;
  ImageShape shape;  // only for moves
};

template <typename T>
class Block {
 public:
  // For up to so many rows, in batches.
  Block(int64_t rows, int64_t batch, int64_t features)
      : batch_(batch),
        features_(features),
        x_(rows * features),
        gram_(rows > batch ? rows * rows : 0) {}

  const BlockShape& shape() const { return shape_; }
  const int64_t* labels() const { return labels_.data(); }  // of each row
  const T* x() const { return x_.get(); }                   // (distinct, features)
  // (distinct, distinct) x x^T + 1, at and below the diagonal, as far as needed.
  const T* gram() const { return gram_.get(); }

  // Makes it the block of these rows; moves are as flip_shift takes them, or null.
  void open(const Images& images, const int64_t* order, const int8_t* moves, int64_t rows) {
    moves_ = moves;
    numbers_.assign(order, order + rows);
    labels_.resize(rows);
    for (int64_t m = 0; m < rows; ++m) labels_[m] = images.labels[order[m]];
    slots_.clear();
    if (!moves) find_repeats();
    shape_ = {rows, batch_, static_cast<int64_t>(numbers_.size()),
              slots_.empty() ? nullptr : slots_.data()};
  }

  // Its inputs are made by gather(i) for i in [0, gathers()), in any order, on any threads; then
  // the Gram matrix by gram(i) for i in [0, grams()).
  int64_t gathers() const { return ceil_of(shape_.distinct, kGatherRows); }

  void gather(const Images& images, int64_t item) const {
    std::vector<uint8_t> moved(moves_ ? features_ : 0);
    const int64_t end = std::min((item + 1) * kGatherRows, shape_.distinct);
    for (int64_t s = item * kGatherRows; s < end; ++s) {
      const uint8_t* pixels = images.pixels + numbers_[s] * features_;
      if (s + 1 < end) {  // the next one may lie anywhere in memory
        const uint8_t* ahead = images.pixels + numbers_[s + 1] * features_;
        for (int64_t i = 0; i < features_; i += 64) __builtin_prefetch(ahead + i);
      }
      if (moves_) {
        flip_shift(pixels, images.shape, moves_ + 3 * s, moved.data());
        pixels = moved.data();
      }
      FASTMLP_BEST_ISA(normalize_row<T>)(pixels, images.scale, images.shift, features_,
                                         x_.get() + s * features_);
    }
  }

  // None where there is only one step: nothing has a history.
  int64_t grams() const { return shape_.steps() > 1 ? ceil_of(shape_.distinct, kGramRows) : 0; }

  void gram(int64_t item) const {
    const int64_t distinct = shape_.distinct;
    const int64_t first = (grams() - 1 - item) * kGramRows;  // those with most columns first
    const int64_t count = std::min(kGramRows, distinct - first);
    const int64_t columns = shape_.slot ? first + count : (first + count - 1) / batch_ * batch_;
    std::vector<T> scratch(count * columns);
    FASTMLP_BEST_ISA(gram_tile<T>)(x(), features_, first, count, columns, gram_.get(), distinct,
                                   scratch.data());
  }

 private:
  static constexpr int64_t kGatherRows = 8;
  static constexpr int64_t kGramRows = 8;  // a multiple of every instruction set's tile

  // Where images come more than once, fills slots_ and leaves each image once.
  void find_repeats() {
    const int64_t rows = numbers_.size();
    std::vector<int64_t> sorted(rows);
    std::iota(sorted.begin(), sorted.end(), 0);
    std::sort(sorted.begin(), sorted.end(), [&](int64_t a, int64_t b) {
      return numbers_[a] != numbers_[b] ? numbers_[a] < numbers_[b] : a < b;
    });
    std::vector<int64_t> first_of(rows);  // the first row with the same image
    bool any = false;
    for (int64_t i = 0; i < rows; ++i) {
      const bool repeats = i > 0 && numbers_[sorted[i]] == numbers_[sorted[i - 1]];
      first_of[sorted[i]] = repeats ? first_of[sorted[i - 1]] : sorted[i];
      any = any || repeats;
    }
    if (!any) return;
    slots_.resize(rows);
    int64_t distinct = 0;
    for (int64_t m = 0; m < rows; ++m) {
      if (first_of[m] == m) {
        numbers_[distinct] = numbers_[m];
        slots_[m] = distinct++;
      } else {
        slots_[m] = slots_[first_of[m]];
      }
    }
    numbers_.resize(distinct);
  }

  int64_t batch_, features_;
  BlockShape shape_{};
  std::vector<int64_t> numbers_, labels_, slots_;  // of each distinct input; of each row (two)
  const int8_t* moves_ = nullptr;
  Buffer<T> x_, gram_;
};

}  // namespace fastmlp
