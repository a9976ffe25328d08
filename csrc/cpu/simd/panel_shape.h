// How a matrix's columns are taken in panels of a few vectors. Plain C++, no torch.
#pragma once
#include <cstdint>
#include <vector>

namespace fastmlp {

// Vectors in the next panel where `left` vectors of columns are left: two panels of two rather than
// one of three and one of one.
inline int64_t panel_vectors(int64_t left) { return left == 4 ? 2 : left < 3 ? left : 3; }

// The part of a long sum whose panel stays in a level-1 cache; parts are added up. And the numbers
// in a row of the widest panel of any instruction set.
constexpr int64_t kInnerBlock = 128;
template <typename T>
constexpr int64_t kWidestPanel = 3 * 64 / sizeof(T);

// A panel of a matrix's columns: `vectors` vectors of them, from `first` on.
struct Panel {
  int64_t first, vectors;
};

inline std::vector<Panel> panels_of(int64_t columns, int64_t lanes) {
  std::vector<Panel> panels;
  const int64_t vectors = (columns + lanes - 1) / lanes;
  for (int64_t n = 0; n < vectors; n += panels.back().vectors) {
    panels.push_back({n * lanes, panel_vectors(vectors - n)});
  }
  return panels;
}

// Numbers from one row of a batch to the next: whole cache lines, with room for a one beside the
// row, and an odd number of them, so that rows do not fall into the same few sets of a cache.
template <typename T>
int64_t row_stride(int64_t columns) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return ((columns + 1 + kLine - 1) / kLine | 1) * kLine;
}

}  // namespace fastmlp
