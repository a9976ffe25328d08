// The inputs of a block of steps: its images, each once, normalised, and their Gram matrix.
// Plain C++, no torch. Wants FASTMLP_KERNELS "blocked_kernels.h" to be included before.
#pragma once
#include <numeric>
#include <type_traits>
#include <vector>

#include "cpu/engine/pixel_gram.h"
#include "cpu/flip_shift.h"
#include "cpu/threads/parallel.h"

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
  // Of batches of so many rows. Where `spans` has any, the Gram matrix is made from bytes.
  Block(int64_t batch, int64_t features, const std::vector<PixelSpan>& spans)
      : batch_(batch),
        features_(features),
        stride_(ceil_of(features, 64) * 64),
        spans_(spans),
        pixels_(0),
        x_(0),
        panels_(0),
        gram_(0) {}

  // What its Gram matrix is best made from: spans, or none.
  static std::vector<PixelSpan> spans_of(const Images& images) {
    if (!std::is_same_v<T, float> || !cpu_has_vnni()) return {};
    return pixel_spans(images.scale, images.shift, images.features);
  }

  const BlockShape& shape() const { return shape_; }
  const int64_t* labels() const { return labels_.data(); }  // of each row
  const T* x() const { return x_.get(); }                   // (distinct, features)
  const T* panels() const { return panels_.get(); }         // x again, in panels
  // (distinct, distinct) x x^T + 1, as far as needed: below the diagonal, or all of it where images
  // come more than once.
  const T* gram() const { return gram_.get(); }
  // How many of its inputs the steps up to this one have.
  int64_t seen_after(const Step& step) const {
    if (slots_.empty()) return step.first + step.count;
    const auto first = slots_.begin() + step.first;
    return std::max(step.seen, *std::max_element(first, first + step.count) + 1);
  }

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
    reserve(shape_.distinct);
  }

  // Its inputs are made by gather(i) for i in [0, gathers()), in any order, on any threads; then
  // the Gram matrix by gram(i) for i in [0, grams()).
  int64_t gathers() const { return ceil_of(shape_.distinct, kGatherRows); }

  void gather(const Images& images, int64_t item) {
    const int64_t begin = item * kGatherRows;
    const int64_t end = std::min(begin + kGatherRows, shape_.distinct);
    for (int64_t s = begin; s < end; ++s) {
      const uint8_t* image = images.pixels + numbers_[s] * features_;
      if (s + 1 < end) {  // the next one may lie anywhere in memory
        const uint8_t* ahead = images.pixels + numbers_[s + 1] * features_;
        for (int64_t i = 0; i < features_; i += 64) __builtin_prefetch(ahead + i);
      }
      uint8_t* mine = pixels_.get() + s * stride_;
      if (moves_) {
        flip_shift(image, images.shape, moves_ + 3 * s, mine);
      } else {
        std::copy_n(image, features_, mine);
      }
#ifdef FASTMLP_X86
      if (!spans_.empty()) terms_[s] = pixel_terms(mine, spans_);
#endif
    }
    const int64_t panel = begin / kPanelRows * kPanelRows;
    FASTMLP_BEST_ISA(normalize_rows<T>)(
        pixels_.get() + begin * stride_, stride_, end - begin, images.scale, images.shift,
        features_, x_.get() + begin * features_, panels_.get() + panel * features_ + begin - panel,
        panel_width(shape_.distinct, panel));
  }

  // None where there is only one step: nothing has a history.
  int64_t grams() const { return shape_.steps() > 1 ? ceil_of(shape_.distinct, kGramRows) : 0; }

  void gram(int64_t item) const {
    const int64_t distinct = shape_.distinct;
    const int64_t first = (grams() - 1 - item) * kGramRows;  // those with most columns first
    const int64_t count = std::min(kGramRows, distinct - first);
    make_gram(first, count);
    if (!shape_.slot) return;
    for (int64_t m = first; m < first + count; ++m) {
      for (int64_t n = 0; n < first; ++n) {
        gram_.get()[n * distinct + m] = gram_.get()[m * distinct + n];
      }
    }
  }

 private:
  // Makes room for so many inputs.
  void reserve(int64_t inputs) {
    if (inputs <= capacity_) return;
    capacity_ = inputs;
    terms_.resize(inputs);
    pixels_ = Buffer<uint8_t>(inputs * stride_);
    x_ = Buffer<T>(inputs * features_);
    panels_ = Buffer<T>(ceil_of(inputs, kPanelUnit) * kPanelUnit * features_);
    gram_ = Buffer<T>(shape_.rows > batch_ ? inputs * inputs : 0);
  }

  // `count` rows of it from `first` on, to the diagonal.
  void make_gram(int64_t first, int64_t count) const {
    const int64_t columns = shape_.slot ? first + count : (first + count - 1) / batch_ * batch_;
#ifdef FASTMLP_X86
    if (!spans_.empty()) {
      pixel_gram(pixels_.get(), stride_, spans_, terms_.data(), first, count, columns, gram_.get(),
                 shape_.distinct);
      return;
    }
#endif
    std::vector<T> scratch(count * columns);
    FASTMLP_BEST_ISA(gram_tile<T>)(x(), features_, first, count, columns, gram_.get(),
                                   shape_.distinct, scratch.data());
  }

  static constexpr int64_t kGatherRows = kPanelUnit;
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

  int64_t batch_, features_, stride_, capacity_ = 0;
  const std::vector<PixelSpan>& spans_;
  std::vector<PixelTerms> terms_;  // of each distinct image, as are the next two
  Buffer<uint8_t> pixels_;         // (distinct, stride)
  BlockShape shape_{};
  std::vector<int64_t> numbers_, labels_, slots_;  // of each distinct input; of each row (two)
  const int8_t* moves_ = nullptr;
  Buffer<T> x_, panels_, gram_;
};

}  // namespace fastmlp
