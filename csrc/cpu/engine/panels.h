// A network's layers with their weights in panels, for as long as a call lasts. Plain C++, no
// torch. Wants FASTMLP_KERNELS "steps_kernels.h" to be included before.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/simd/panel_shape.h"
#include "cpu/threads/parallel.h"

namespace fastmlp {

// One layer: y = x w^T + b.
template <typename T>
class PanelLayer {
 public:
  // `kept` numbers are kept of each weight by the optimizer; `transposed`: gradients go on from
  // here to a layer before.
  PanelLayer(int64_t inputs, int64_t outputs, int kept, bool transposed)
      : inputs(inputs),
        outputs(outputs),
        lanes_(FASTMLP_BEST_ISA(lanes_of<T>)()),
        panels(panels_of(outputs, lanes_)),
        size((panels.back().first + panels.back().vectors * lanes_) * (inputs + 1)),
        weights_(size),
        first_(kept > 0 ? size : 0),
        second_(kept > 1 ? size : 0),
        across_panels_(transposed ? panels_of(inputs, lanes_) : std::vector<Panel>{}),
        across_(transposed ? padded(inputs) * outputs : 0) {
    if (transposed) std::fill_n(across_.get(), padded(inputs) * outputs, T(0));
  }

  int64_t width(const Panel& panel) const { return panel.vectors * lanes_; }
  PanelWeights<T> at(const Panel& panel) const {
    const int64_t begin = panel.first * (inputs + 1);
    return {weights_.get() + begin, first_.get() + begin, second_.get() + begin};
  }
  PanelWeights<T> all() const { return {weights_.get(), first_.get(), second_.get()}; }
  // The weights alone once more, transposed: panels of inputs, a row for each output.
  const T* across() const { return across_.get(); }

  // Of w (outputs, inputs) and b (outputs) into the panels of one of all()'s, and back.
  void pack(const T* w, const T* b, T* to) const {
    std::fill_n(to, size, T(0));
    each([&](int64_t o, int64_t i, int64_t at) { to[at] = i < inputs ? w[o * inputs + i] : b[o]; });
  }
  void unpack(const T* from, T* w, T* b) const {
    each([&](int64_t o, int64_t i, int64_t at) {
      (i < inputs ? w[o * inputs + i] : b[o]) = from[at];
    });
  }

  // Brings the transposed copy up to date for a panel's inputs [begin, end).
  void transpose(const Panel& panel, int64_t begin, int64_t end) const {
    if (across_panels_.empty()) return;
    const T* from = at(panel).w;
    const int64_t wide = width(panel), count = std::min(wide, outputs - panel.first);
    end = std::min(end, inputs);
    for (const Panel& across : across_panels_) {
      const int64_t across_width = width(across), low = std::max(begin, across.first);
      const int64_t high = std::min(end, across.first + across_width);
      T* to = across_.get() + across.first * outputs + panel.first * across_width - across.first;
      for (int64_t i = low; i < high; ++i) {
        for (int64_t o = 0; o < count; ++o) to[o * across_width + i] = from[i * wide + o];
      }
    }
  }

  const int64_t inputs, outputs;

 private:
  int64_t padded(int64_t columns) const { return (columns + lanes_ - 1) / lanes_ * lanes_; }

  // f(output, input, place in the panels) for all weights, and the bias as one more input; a cache
  // line of each output's weights at a time, as these lie far apart.
  template <typename F>
  void each(const F& f) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (const Panel& panel : panels) {
      const int64_t count = std::min(width(panel), outputs - panel.first);
      for (int64_t line = 0; line <= inputs; line += kLine) {
        const int64_t end = std::min(line + kLine, inputs + 1);
        for (int64_t o = 0; o < count; ++o) {
          const int64_t at = panel.first * (inputs + 1) + o;
          for (int64_t i = line; i < end; ++i) f(panel.first + o, i, at + i * width(panel));
        }
      }
    }
  }

  const int64_t lanes_;

 public:
  const std::vector<Panel> panels;
  const int64_t size;  // numbers of all panels together

 private:
  Buffer<T> weights_, first_, second_;
  std::vector<Panel> across_panels_;
  Buffer<T> across_;
};

}  // namespace fastmlp
