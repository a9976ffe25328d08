// What softmax cross entropy needs of a row of logits. Included by foreach_isa.h.

// v with `fill` in the lanes from `lanes` on.
template <typename Acc>
FASTMLP_INLINE vec<Acc> fill_lanes(Acc fill, vec<Acc> v, int64_t lanes) {
  for (int i = 0; i < kLanes<Acc>; ++i) v[i] = i < lanes ? v[i] : fill;
  return v;
}
#if FASTMLP_VECTOR_BYTES == 64
FASTMLP_INLINE vec<float> fill_lanes(float fill, vec<float> v, int64_t lanes) {
  return (vec<float>)_mm512_mask_mov_ps(_mm512_set1_ps(fill), (__mmask16)((1u << lanes) - 1),
                                        (__m512)v);
}
#endif

// Vectors that are added up before their sum joins the row's: bounds the rounding error of long
// rows.
constexpr int64_t kSumBlock = 64;

// stats[0] = max_j x_j, stats[1] = log sum_j exp(x_j - max). A nan anywhere makes the second nan,
// and so does a row whose maximum is not finite.
template <typename T>
FASTMLP_INLINE void row_stats(const T* x, int64_t classes, acc_t<T>* stats) {
  using Acc = acc_t<T>;
  constexpr int kStep = kLanes<Acc>;
  constexpr Acc kLowest = -__builtin_inf();
  vec<Acc> largest = broadcast(kLowest), others = largest;
  vec<Acc> total = {};
  const int64_t whole = classes - classes % kStep;
  const int64_t rest = classes - whole;
  vec<Acc> last = {};
  int64_t i = 0;
  for (; i + 2 * kStep <= whole; i += 2 * kStep) {
    largest = larger<Acc>(load(x + i), largest);
    others = larger<Acc>(load(x + i + kStep), others);
  }
  if (i < whole) largest = larger<Acc>(load(x + i), largest);
  largest = larger<Acc>(others, largest);
  if (rest) {
    last = fill_lanes(kLowest, load_partial(x + whole, rest), rest);
    largest = larger<Acc>(last, largest);
  }
  const Acc maximum = reduce_max<Acc>(largest);
  for (int64_t start = 0; start < whole; start += kSumBlock * kStep) {
    const int64_t end = whole - start < kSumBlock * kStep ? whole : start + kSumBlock * kStep;
    vec<Acc> part = {};
    for (int64_t j = start; j < end; j += kStep) part += exp(load(x + j) - maximum);
    total += part;
  }
  if (rest) total += exp(last - maximum);
  stats[0] = maximum;
  stats[1] = log_of(reduce_add<Acc>(total));
}
