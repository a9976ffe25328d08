// linear and linear_backward on the CPU: skinny products by our kernels, large ones by ATen's BLAS.
#define FASTMLP_KERNELS "cpu/linear_panels.h"
#include "common/linear_aten.h"
#include "common/tensor.h"
#include "cpu/operators.h"
#include "cpu/simd/panel_shape.h"
#include "cpu/threads/parallel.h"
#include "plan.h"
//
#include "cpu/simd/foreach_isa.h"

namespace fastmlp {
namespace {

using torch::stable::parallel_for;

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kWorkPerThread = 1 << 16;

LinearPlan plan_linear(int64_t batch, int64_t in, int64_t out, ScalarType type) {
  return plan_linear_cpu(batch, in, out,
                         type == ScalarType::Half       ? Numbers::kFloat16
                         : type == ScalarType::BFloat16 ? Numbers::kBrainFloat16
                                                        : Numbers::kWider);
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

// Rows up to which a product is taken by dots of rows, without any packing.
constexpr int64_t kDotRows = 11;

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
      FASTMLP_BEST_ISA(activation_gradient<0, T>)(x.data<T>(), x.stride, nullptr, 0,
                                                  Activation::kNone, x.rows, x.columns, wide,
                                                  x.columns, nullptr);
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
  parallel_for(0, tiles, grain(kColumns * x.rows * x.columns), [&](int64_t begin, int64_t end) {
    run(0, x.rows, begin * kColumns, std::min(end * kColumns, w.rows));
  });
}

// The operands of c (rows, columns) = a b, sums over k: a(m, i) = a[m * stride + i], or where
// `across` a[m + i * stride]; b(i, n) = b[i * step + n * column], step or column being 1.
template <typename T>
struct Product {
  int64_t rows, columns, k;
  const acc_t<T>* a;
  int64_t stride;
  bool across;
  const T* b;
  int64_t step, column;
};

// c = act(a b + bias), where b's rows are read from beginning to end, a range of columns a thread.
template <typename T>
void multiply_streamed(const Product<T>& p, const T* bias, Activation activation, T* c) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t lines = (p.columns + kLine - 1) / kLine;
  parallel_for(0, lines, grain(p.rows * kLine * p.k), [&](int64_t begin, int64_t end) {
    const int64_t n = begin * kLine;
    FASTMLP_BEST_ISA(linear_stream<T>)(p.a, p.stride, p.across, p.rows, p.b + n, p.step,
                                       std::min(end * kLine, p.columns) - n, p.k,
                                       bias ? bias + n : nullptr, activation, c + n, p.columns);
  });
}

// c = act(a b + bias)
template <typename T>
void multiply(const Product<T>& p, const T* bias, Activation activation, T* c) {
  using Acc = acc_t<T>;
  if (p.rows == 0 || p.columns == 0) return;
  if constexpr (std::is_same_v<T, Acc>) {
    constexpr int64_t kStreamedRows = 2, kLongSum = 16;
    if (p.column == 1 && p.rows <= kStreamedRows && p.k >= kLongSum) {
      return multiply_streamed(p, bias, activation, c);
    }
  }
  const std::vector<Panel> panels = panels_of(p.columns, FASTMLP_BEST_ISA(lanes_of<Acc>)());
  // Each panel's rows in as many parts as there are threads, of 16 rows at least, so that all
  // threads get the same; neighbouring parts that fall to one are one.
  constexpr int64_t kLeastRows = 16;
  const int64_t wanted = std::min<int64_t>(torch::stable::get_num_threads(), p.rows / kLeastRows);
  const int64_t part = (p.rows / std::max<int64_t>(wanted, 1) + 7) / 8 * 8;
  const int64_t parts = (p.rows + part - 1) / part, items = parts * panels.size();
  parallel_for(0, items, grain(p.rows * p.columns * p.k / items), [&](int64_t item, int64_t end) {
    const Buffer<Acc> packed(kInnerBlock * kWidestPanel<Acc>), sums(p.rows * kWidestPanel<Acc>);
    while (item < end) {
      const int64_t first = item % parts, whole = first == 0 ? (end - item) / parts : 0;
      const int64_t count = std::min(parts - first, end - item);
      const int64_t next = item / parts + std::max<int64_t>(whole, 1);
      const int64_t n = panels[item / parts].first, m = first * part;
      const int64_t n_end =
          next < static_cast<int64_t>(panels.size()) ? panels[next].first : p.columns;
      const int64_t rows = std::min((first + count) * part, p.rows) - m;
      FASTMLP_BEST_ISA(linear_panels<T>)(
          p.a + m * (p.across ? 1 : p.stride), p.stride, p.across, rows, p.b + n * p.column, p.step,
          p.column, n_end - n, p.k, bias ? bias + n : nullptr, activation, c + m * p.columns + n,
          p.columns, packed.get(), sums.get());
      item += whole > 0 ? whole * parts : count;
    }
  });
}

// A weight (O, I) where it is, or a copy, one of its dimensions having neighbours in memory: its
// element (o, i) is data[o * out_step + i * in_step].
template <typename T>
struct WeightView {
  explicit WeightView(const Tensor& weight)
      : is_across(weight.stride(0) == 1 && weight.stride(1) != 1),
        rows(rows_of(is_across ? torch::stable::transpose(weight, 0, 1) : weight)),
        data(rows.data<T>()),
        out_step(is_across ? 1 : rows.stride),
        in_step(is_across ? rows.stride : 1) {}

  const bool is_across;
  const Rows rows;
  const T* const data;
  const int64_t out_step, in_step;
};

// By our kernels.
Tensor linear_ours(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   Activation activation) {
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = weight.size(0);
  const Rows rows = rows_of(x);
  const std::optional<Tensor> flat_bias =
      bias ? std::optional<Tensor>(torch::stable::contiguous(*bias)) : std::nullopt;
  Tensor y = empty_cpu(sizes, x.scalar_type());
  if (y.numel() == 0) return y;
  dispatch_floating(x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* b = flat_bias ? static_cast<const T*>(flat_bias->data_ptr()) : nullptr;
    T* out = static_cast<T*>(y.data_ptr());
    const WeightView<T> w(weight);
    if (w.is_across || rows.rows > kDotRows) {
      const Widened<T> a(rows);
      multiply<T>({rows.rows, weight.size(0), rows.columns, a.data, a.stride, false, w.data,
                   w.in_step, w.out_step},
                  b, activation, out);
    } else {
      linear_by_rows<T>(rows, w.rows, b, activation, out);
    }
  });
  return y;
}

}  // namespace

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  int64_t activation, int64_t matmul_precision) {
  check_linear(x, weight, bias);
  check_activation(activation);
  check_matmul_precision(matmul_precision);
  return is_ours(x, weight) ? linear_ours(x, weight, bias, static_cast<Activation>(activation))
                            : linear_aten(x, weight, bias, activation);
}

namespace {

template <typename T>
void linear_backward_skinny(const Rows& dy, const Rows& x, const Tensor& weight,
                            const std::optional<Tensor>& saved, Activation activation, Tensor* dx,
                            Tensor* dw, Tensor* db) {
  const int64_t batch = dy.rows, out = dy.columns, in = x.columns;
  // The gradients behind the activation; those before it where they are the same and their rows do
  // not push each other out of a level-1 cache.
  const acc_t<T>* g = nullptr;
  int64_t stride = dy.stride;
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    if (!saved && stride * sizeof(T) % 256 != 0) g = dy.data<T>();
  }
  if (!g) stride = row_stride<acc_t<T>>(out);
  const Buffer<acc_t<T>> copy(g ? 0 : batch * stride);
  const std::optional<Rows> kept = saved ? std::optional<Rows>(rows_of(*saved)) : std::nullopt;
  if (!g || db) {
    FASTMLP_BEST_ISA(activation_gradient<0, T>)(
        dy.data<T>(), dy.stride, kept ? kept->data<T>() : nullptr, kept ? kept->stride : 0,
        kept ? activation : Activation::kNone, batch, out, g ? nullptr : copy.get(), stride,
        db ? static_cast<T*>(db->data_ptr()) : nullptr);
  }
  if (!g) g = copy.get();
  if (dw) {
    multiply<T>({out, in, batch, g, stride, true, x.data<T>(), x.stride, 1}, nullptr,
                Activation::kNone, static_cast<T*>(dw->data_ptr()));
  }
  if (dx) {
    const WeightView<T> w(weight);
    multiply<T>({batch, in, out, g, stride, false, w.data, w.out_step, w.in_step}, nullptr,
                Activation::kNone, static_cast<T*>(dx->data_ptr()));
  }
}

}  // namespace

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

}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("linear", TORCH_BOX(&fastmlp::linear_cpu));
  m.impl("linear_backward", TORCH_BOX(&fastmlp::linear_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CompositeExplicitAutograd, m) {
  m.impl("linear_plan", TORCH_BOX(&fastmlp::linear_plan));
}
