// Square transposes in registers. Included by foreach_isa.h.

// Of two vectors: the lanes without bit D from a, and from b those a distance of D before the
// others; and the reverse.
#ifdef __clang__
#define FASTMLP_LANES(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FASTMLP_LANES(type, a, b, ...) __builtin_shuffle(a, b, type{__VA_ARGS__})
#endif

template <int... I>
struct LaneNumbers {};
template <int N, int... I>
struct UpTo : UpTo<N - 1, N - 1, I...> {};
template <int... I>
struct UpTo<0, I...> {
  typedef LaneNumbers<I...> type;
};

template <int D, int... I>
FASTMLP_INLINE void swap_lanes(vec<float>& a, vec<float>& b, LaneNumbers<I...>) {
  constexpr int kCount = sizeof...(I);
  const vec<float> low = FASTMLP_LANES(vec_i32, a, b, ((I & D) ? kCount + I - D : I)...);
  const vec<float> high = FASTMLP_LANES(vec_i32, a, b, ((I & D) ? kCount + I : I + D)...);
  a = low;
  b = high;
}
#undef FASTMLP_LANES

template <int D>
FASTMLP_INLINE void transpose_from(vec<float>* rows) {
  if constexpr (D > 0) {
    for (int i = 0; i < kLanes<float>; ++i) {
      if ((i & D) == 0) {
        swap_lanes<D>(rows[i], rows[i + D], typename UpTo<kLanes<float>>::type());
      }
    }
    transpose_from<D / 2>(rows);
  }
}

// rows[m][n] <-> rows[n][m], as many rows as lanes.
FASTMLP_INLINE void transpose(vec<float>* rows) { transpose_from<kLanes<float> / 2>(rows); }
