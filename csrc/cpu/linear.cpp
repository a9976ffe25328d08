// linear and linear_backward on the CPU: skinny products by our kernels, large ones by ATen's BLAS.
#define FASTMLP_KERNELS "cpu/linear_kernels.h"
#include "common/linear_aten.h"
#include "common/tensor.h"
#include "cpu/simd/foreach_isa.h"
#include "plan.h"

namespace fastmlp {
namespace {

using torch::stable::parallel_for;

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kWorkPerThread = 1 << 16;

LinearPlan plan_linear(int64_t batch, int64_t in, int64_t out, ScalarType type) {
  return plan_linear_cpu(batch, in, out, type == ScalarType::BFloat16);
}

bool is_ours(const Tensor& x, const Tensor& weight) {
  return plan_linear(rows_in(x), weight.size(1), weight.size(0), x.scalar_type()).ours;
}

std::string linear_plan(int64_t batch, int64_t in, int64_t out, ScalarType type) {
  check_planned("batch", batch);
  check_planned("inputs", in);
  check_planned("outputs", out);
  const LinearPlan plan = plan_linear(batch, in, out, type);
  return std::string(plan.ours ? "fastmlp's kernels" : "ATen's BLAS") + " (" + plan.reason + ")";
}

// Sums of at most this many products take less time than storing them.
constexpr int64_t kShortSum = 16;

// Items a thread should take at least, when an item is `work` multiply-adds.
int64_t grain(int64_t work) {
  return std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(work, 1));
}

// The values of a small matrix as its kernels accumulate them, rows packed.
template <typename T>
struct Widened {
  std::optional<Tensor> copy;
  const acc_t<T>* data;
  int64_t stride;

  explicit Widened(const Rows& x) {
    if constexpr (std::is_same_v<T, acc_t<T>>) {
      data = x.data<T>();
      stride = x.stride;
    } else {
      copy = empty_cpu({x.rows, x.columns}, ScalarType::Float);
      auto* wide = static_cast<acc_t<T>*>(copy->data_ptr());
      FASTMLP_BEST_ISA(activation_gradient<T>)(x.data<T>(), x.stride, nullptr, 0, Activation::kNone,
                                               x.rows, x.columns, wide, nullptr);
      data = wide;
      stride = x.columns;
    }
  }
};

// y = act(x w^T + bias), w (O, I) with contiguous rows.
template <typename T>
void linear_by_rows(const Rows& x, const Rows& w, const T* bias, Activation activation, T* y) {
  using Acc = acc_t<T>;
  const Widened<T> a(x);
  constexpr int64_t kColumns = 3;  // a tile's columns in every instruction set
  constexpr int64_t kPanel = 96;   // columns whose weights stay in a level-2 cache for all rows
  const auto run = [&](int64_t m_begin, int64_t m_end, int64_t n_begin, int64_t n_end) {
    std::vector<Acc> scratch((m_end - m_begin) * std::min(kPanel, n_end - n_begin));
    for (int64_t n = n_begin; n < n_end; n += kPanel) {
      FASTMLP_BEST_ISA(linear_columns<T>)(
          a.data + m_begin * a.stride, a.stride, m_end - m_begin, w.data<T>() + n * w.stride,
          w.stride, std::min(kPanel, n_end - n), x.columns, bias ? bias + n : nullptr, activation,
          y + m_begin * w.rows + n, w.rows, scratch.data());
    }
  };
  const int64_t tiles = (w.rows + kColumns - 1) / kColumns;
  if (x.rows <= 8 * tiles) {
    parallel_for(0, tiles, grain(kColumns * x.rows * x.columns), [&](int64_t begin, int64_t end) {
      run(0, x.rows, begin * kColumns, std::min(end * kColumns, w.rows));
    });
    return;
  }
  constexpr int64_t kBlockRows = 64;  // a multiple of every tile's rows
  const int64_t blocks = (x.rows + kBlockRows - 1) / kBlockRows;
  parallel_for(0, blocks, grain(kBlockRows * w.rows * x.columns), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      run(block * kBlockRows, std::min((block + 1) * kBlockRows, x.rows), 0, w.rows);
    }
  });
}

// c (rows, columns) = act(a b + bias) with b (k, columns) of contiguous rows, in column ranges.
template <typename T>
void axpy_parallel(const acc_t<T>* a, int64_t a_row, int64_t a_step, int64_t rows, const T* b,
                   int64_t b_stride, int64_t columns, int64_t k, const T* bias,
                   Activation activation, T* c) {
  constexpr int64_t kColumns = 48 * 4 / sizeof(acc_t<T>);  // whole register tiles in every set
  const int64_t tiles = (columns + kColumns - 1) / kColumns;
  if (tiles > 1 || rows <= 8) {
    // A short sum is bound by writing c: eight rows at a time are few streams of long runs.
    const int64_t chunk = k <= kShortSum ? 8 : rows;
    parallel_for(0, tiles, grain(kColumns * rows * k), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kColumns, width = std::min(end * kColumns, columns) - first;
      for (int64_t m = 0; m < rows; m += chunk) {
        FASTMLP_BEST_ISA(axpy_linear<T>)(
            a + m * a_row, a_row, a_step, std::min(chunk, rows - m), b + first, b_stride, width, k,
            bias ? bias + first : nullptr, activation, c + m * columns + first, columns);
      }
    });
    return;
  }
  constexpr int64_t kBlockRows = 8;
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  parallel_for(0, blocks, grain(kBlockRows * columns * k), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlockRows;
    FASTMLP_BEST_ISA(axpy_linear<T>)(a + first * a_row, a_row, a_step,
                                     std::min(end * kBlockRows, rows) - first, b, b_stride, columns,
                                     k, bias, activation, c + first * columns, columns);
  });
}

// By our kernels.
Tensor linear_ours(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   Activation activation) {
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = weight.size(0);
  const Rows rows = rows_of(x);
  const std::optional<Tensor> flat_bias =
      bias ? std::optional<Tensor>(torch::stable::contiguous(*bias)) : std::nullopt;
  const bool by_columns = weight.stride(0) == 1 && weight.stride(1) != 1;
  Tensor y = empty_cpu(sizes, x.scalar_type());
  if (y.numel() == 0) return y;
  dispatch_floating(x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* b = flat_bias ? static_cast<const T*>(flat_bias->data_ptr()) : nullptr;
    T* out = static_cast<T*>(y.data_ptr());
    if (by_columns) {
      const Widened<T> a(rows);
      axpy_parallel<T>(a.data, a.stride, 1, rows.rows, static_cast<const T*>(weight.data_ptr()),
                       weight.stride(1), weight.size(0), rows.columns, b, activation, out);
    } else {
      linear_by_rows<T>(rows, rows_of(weight), b, activation, out);
    }
  });
  return y;
}

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  int64_t activation, int64_t matmul_precision) {
  check_linear(x, weight, bias);
  check_activation(activation);
  check_matmul_precision(matmul_precision);
  return is_ours(x, weight) ? linear_ours(x, weight, bias, static_cast<Activation>(activation))
                            : linear_aten(x, weight, bias, activation);
}

template <typename T>
void linear_backward_skinny(const Rows& dy, const Rows& x, const Tensor& weight,
                            const std::optional<Tensor>& saved, Activation activation, Tensor* dx,
                            Tensor* dw, Tensor* db) {
  const int64_t batch = dy.rows, out = dy.columns, in = x.columns;
  const Tensor sums = empty_cpu({batch, out}, stats_type(dy.tensor.scalar_type()));
  auto* g = static_cast<acc_t<T>*>(sums.data_ptr());
  const std::optional<Rows> kept = saved ? std::optional<Rows>(rows_of(*saved)) : std::nullopt;
  FASTMLP_BEST_ISA(activation_gradient<T>)(
      dy.data<T>(), dy.stride, kept ? kept->data<T>() : nullptr, kept ? kept->stride : 0,
      activation, batch, out, g, db ? static_cast<T*>(db->data_ptr()) : nullptr);
  if (dw) {
    axpy_parallel<T>(g, 1, out, out, x.data<T>(), x.stride, in, batch, nullptr, Activation::kNone,
                     static_cast<T*>(dw->data_ptr()));
  }
  if (dx) {
    const Rows w = rows_of(weight);
    axpy_parallel<T>(g, out, 1, batch, w.data<T>(), w.stride, in, out, nullptr, Activation::kNone,
                     static_cast<T*>(dx->data_ptr()));
  }
}

Gradients linear_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight,
                              const std::optional<Tensor>& saved, int64_t activation, bool need_dx,
                              bool need_dw, bool need_db, int64_t matmul_precision) {
  check_linear_backward(dy, x, weight, saved, activation);
  check_matmul_precision(matmul_precision);
  const ScalarType type = dy.scalar_type();
  const int64_t in = weight.size(1), out = weight.size(0);
  if (!is_ours(x, weight))
    return linear_backward_aten(dy, x, weight, saved, activation, need_dx, need_dw, need_db);
  const auto output = [&](bool need, const std::vector<int64_t>& sizes) {
    return empty_cpu(need ? sizes : std::vector<int64_t>{0}, type);
  };
  Tensor dx = output(need_dx, sizes_of(x));
  Tensor dw = output(need_dw, {out, in});
  Tensor db = output(need_db, {out});
  if (dy.numel() == 0) {  // sums of nothing, of which there may be any number
    for (Tensor* gradient : {&dx, &dw, &db}) torch::stable::zero_(*gradient);
    return {dx, dw, db};
  }
  dispatch_floating(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    linear_backward_skinny<T>(rows_of(dy), rows_of(x), weight, saved,
                              static_cast<Activation>(activation), need_dx ? &dx : nullptr,
                              need_dw ? &dw : nullptr, need_db ? &db : nullptr);
  });
  return {dx, dw, db};
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("linear", TORCH_BOX(&fastmlp::linear_cpu));
  m.impl("linear_backward", TORCH_BOX(&fastmlp::linear_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CompositeExplicitAutograd, m) {
  m.impl("linear_plan", TORCH_BOX(&fastmlp::linear_plan));
}
