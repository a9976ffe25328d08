// Random flips and shifts of uint8 images on the CPU.
#include "cpu/flip_shift.h"

#include "cpu/engine/networks.h"

namespace fastmlp {

void check_image_shape(const std::vector<int64_t>& shape, int64_t features) {
  int64_t pixels = 1;
  bool fits = shape.size() == 3;
  for (size_t i = 0; fits && i < 3; ++i) {
    fits = shape[i] >= 0 && !__builtin_mul_overflow(pixels, shape[i], &pixels);
  }
  FASTMLP_CHECK(fits && pixels == features,
                "shape must be (planes, height, width), with as many pixels as an image, " +
                    std::to_string(features));
}

void check_moves(const Tensor& moves, const std::vector<int64_t>& shape) {
  check_plain("moves", moves, 2, ScalarType::Char);
  check_size("moves", moves, 1, 3);
  FASTMLP_CHECK(moves.size(0) == 0 || shape.size() == 3,
                "shape must be (planes, height, width) where there are moves");
  const int8_t* move = data<int8_t>(moves);
  for (int64_t i = 0; i < moves.size(0); ++i, move += 3) {
    FASTMLP_CHECK(std::abs(move[0]) < shape[1] && std::abs(move[1]) < shape[2],
                  "moves must shift an image by less than its height and width");
  }
}

namespace {

Tensor flip_shift_cpu(const Tensor& images, const Tensor& moves,
                      const std::vector<int64_t>& shape) {
  check_plain("images", images, 2, ScalarType::Byte);
  check_image_shape(shape, images.size(1));
  check_moves(moves, shape);
  check_size("moves", moves, 0, images.size(0));
  const int64_t count = images.size(0), features = images.size(1);
  Tensor out = empty_cpu({count, features}, ScalarType::Byte);
  torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      flip_shift(data<uint8_t>(images) + i * features, {shape[0], shape[1], shape[2]},
                 data<int8_t>(moves) + 3 * i, data<uint8_t>(out) + i * features);
    }
  });
  return out;
}

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("flip_shift", TORCH_BOX(&fastmlp::flip_shift_cpu));
}
