// What the kernels of linear do with their sums: bias, activation, and stores as wide as they can
// be.
#pragma once
#include "cuda/kernel.cuh"

namespace fastmlp {

// kWidth neighbours, and what __stwb stores them as, at once; nvcc would take an assignment apart.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Wide {
  T v[kWidth];
};
template <size_t kBytes>
using Word =
    std::conditional_t<kBytes == 16, uint4, std::conditional_t<kBytes == 8, uint2, unsigned>>;

// values as elements (row, col) .. of a matrix of `columns` columns; those outside are left out.
template <typename T, int kWidth>
__device__ void store_wide(T* matrix, int64_t row, int64_t col, int64_t columns,
                           const Wide<T, kWidth>& values) {
  T* to = matrix + row * columns + col;
  if (columns % kWidth == 0) {  // then a group is inside as a whole, and aligned
    Word<sizeof values> word;
    static_assert(sizeof word == sizeof values);
    memcpy(&word, &values, sizeof word);
    if (col < columns) __stwb(reinterpret_cast<Word<sizeof values>*>(to), word);
    return;
  }
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    if (col + e < columns) to[e] = values.v[e];
  }
}

// act(sum + bias), as stored.
template <typename T>
__device__ T finished(const LinearProduct& product, float sum, int64_t col) {
  if (product.bias) sum += widen(static_cast<const T*>(product.bias)[col]);
  return narrow<T>(ActivationTable::forward(product.activation, sum));
}

}  // namespace fastmlp
