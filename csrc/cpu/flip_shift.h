// Random flips and shifts of an image.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace fastmlp {

struct ImageShape {
  int64_t planes, height, width;
};

// i folded back into [0, n) as a mirror at the first and at the last pixel would; |i| < 2 n - 1.
inline int64_t mirrored(int64_t i, int64_t n) {
  i = i < 0 ? -i : i;
  return i < n ? i : 2 * (n - 1) - i;
}

// Computes: out = the image, flipped left to right if move[2], then shifted move[0] pixels down and
//   move[1] to the right; what comes in at the edges is mirrored.
// Shapes: image and out (planes, height, width). Needs: |move[0]| < height, |move[1]| < width.
// Same as: flip_shift_ref.
inline void flip_shift(const uint8_t* image, const ImageShape& shape, const int8_t* move,
                       uint8_t* out) {
  const int64_t down = move[0], right = move[1], height = shape.height, width = shape.width;
  const bool flip = move[2] != 0;
  const int64_t begin = std::max<int64_t>(0, right), end = std::min(width, width + right);
  const auto source = [&](int64_t x) {
    const int64_t from = mirrored(x - right, width);
    return flip ? width - 1 - from : from;
  };
  for (int64_t line = 0; line < shape.planes * height; ++line) {
    const int64_t plane = line / height, y = line % height;
    const uint8_t* from = image + (plane * height + mirrored(y - down, height)) * width;
    uint8_t* to = out + line * width;
    for (int64_t x = 0; x < begin; ++x) to[x] = from[source(x)];
    if (flip) {
      std::reverse_copy(from + width - (end - right), from + width - (begin - right), to + begin);
    } else {
      std::memcpy(to + begin, from + begin - right, end - begin);
    }
    for (int64_t x = end; x < width; ++x) to[x] = from[source(x)];
  }
}

}  // namespace fastmlp
