// Square transposes in registers. Included by foreach_isa.h.

// Of two vectors: the lanes without bit D from a, and from b those a distance of D before the
// others; and the reverse.
#ifdef __clang__
#define FASTMLP_LANES(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FASTMLP_LANES(type, a, b, ...) __builtin_shuffle(a, b, type{__VA_ARGS__})
#endif

template <typename Acc>
struct LaneMask {
  typedef vec_i32 type;
};
template <>
struct LaneMask<double> {
  typedef vec_i64 type;
};
template <int... I>
struct LaneNumbers {};
template <int N, int... I>
struct UpTo : UpTo<N - 1, N - 1, I...> {};
template <int... I>
struct UpTo<0, I...> {
  typedef LaneNumbers<I...> type;
};

template <int D, typename Acc, int... I>
FASTMLP_INLINE void swap_lanes(vec<Acc>& a, vec<Acc>& b, LaneNumbers<I...>) {
  typedef typename LaneMask<Acc>::type Mask;
  constexpr int kCount = sizeof...(I);
  const vec<Acc> low = FASTMLP_LANES(Mask, a, b, ((I & D) ? kCount + I - D : I)...);
  const vec<Acc> high = FASTMLP_LANES(Mask, a, b, ((I & D) ? kCount + I : I + D)...);
  a = low;
  b = high;
}
#undef FASTMLP_LANES

template <int D, typename Acc>
FASTMLP_INLINE void transpose_from(vec<Acc>* rows) {
  if constexpr (D > 0) {
    for (int i = 0; i < kLanes<Acc>; ++i) {
      if ((i & D) == 0) {
        swap_lanes<D, Acc>(rows[i], rows[i + D], typename UpTo<kLanes<Acc>>::type());
      }
    }
    transpose_from<D / 2, Acc>(rows);
  }
}

// rows[m][n] <-> rows[n][m], as many rows as lanes.
template <typename Acc>
FASTMLP_INLINE void transpose(vec<Acc>* rows) {
  transpose_from<kLanes<Acc> / 2, Acc>(rows);
}
