// Operators for the tests of the emulated GPU: its settings, guard bands, fenced memory.
#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "cuda_on_host.h"
#include "device_on_host.h"

namespace fastmlp {
namespace {

constexpr size_t kBandBytes = 4096;
constexpr unsigned char kBand = 0xa5;
struct Block {
  unsigned char* memory;  // band, contents, band
  size_t bytes;
};
std::vector<Block> blocks_;
constexpr size_t kMostPoisoned = 1
                                 << 30;  // larger tensors stay untouched, so that they stay virtual

struct Fence {
  void* memory;
  size_t bytes;
};
std::vector<Fence> fences_;

Tensor tensor_at(void* data, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                 ScalarType type) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, shim_type(type),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

size_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
      return 4;
    case ScalarType::Byte:
      return 1;
    default:
      return 2;
  }
}

}  // namespace

Tensor empty_between_bands(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t dim = sizes.size(); dim-- > 0; step *= std::max<int64_t>(sizes[dim], 1)) {
    strides[dim] = step;
  }
  size_t bytes = bytes_of(type);
  for (const int64_t size : sizes) bytes *= size;
  const size_t whole = (bytes + 2 * kBandBytes + 63) / 64 * 64;
  auto* memory = static_cast<unsigned char*>(aligned_alloc(64, whole));
  memset(memory, kBand, kBandBytes);
  memset(memory + kBandBytes + bytes, kBand, kBandBytes);
  if (bytes <= kMostPoisoned) memset(memory + kBandBytes, 0xff, bytes);  // nan in every dtype
  blocks_.push_back({memory, bytes});
  return tensor_at(memory + kBandBytes, sizes, strides, type);
}

namespace {

// Frees the memory of every tensor made so far; returns how many bytes of their bands were written.
int64_t release_tensors() {
  int64_t written = 0;
  for (const Block& block : blocks_) {
    for (size_t i = 0; i < kBandBytes; ++i) {
      written += block.memory[i] != kBand;
      written += block.memory[kBandBytes + block.bytes + i] != kBand;
    }
    free(block.memory);
  }
  blocks_.clear();
  return written;
}

// A copy of x in its strides that ends (or begins, where `low`) at a page nobody may touch.
Tensor fenced(const Tensor& x, bool low) {
  size_t elements = 1;
  std::vector<int64_t> strides(x.dim());
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    strides[dim] = x.stride(dim);
    elements = x.size(dim) == 0 || elements == 0 ? 0 : elements + (x.size(dim) - 1) * x.stride(dim);
  }
  const size_t page = sysconf(_SC_PAGESIZE), bytes = elements * bytes_of(x.scalar_type());
  const size_t room = (bytes + page - 1) / page * page;
  auto* memory = static_cast<char*>(
      mmap(nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  FASTMLP_CHECK(memory != MAP_FAILED, "no memory to fence");
  fences_.push_back({memory, room + 2 * page});
  if (room > 0) mprotect(memory + page, room, PROT_READ | PROT_WRITE);
  char* data = memory + page + (low ? 0 : room - bytes);
  if (bytes > 0) memcpy(data, x.data_ptr(), bytes);
  return tensor_at(data, sizes_of(x), strides, x.scalar_type());
}

void release_fences() {
  for (const Fence& fence : fences_) munmap(fence.memory, fence.bytes);
  fences_.clear();
}

void configure(int64_t order, int64_t processors, int64_t capability, int64_t last_blocks,
               int64_t clusters) {
  cuda_on_host::configure({static_cast<unsigned>(order), static_cast<int>(processors),
                           static_cast<int>(capability), static_cast<uint64_t>(last_blocks),
                           static_cast<int>(clusters)});
}

int64_t last_cluster() { return cuda_on_host::last_cluster(); }

}  // namespace
}  // namespace fastmlp

STABLE_TORCH_LIBRARY_FRAGMENT(FASTMLP_LIBRARY, m) {
  m.def(
      "configure(int order, int processors, int capability, int last_blocks, int clusters=0) -> "
      "()");
  m.def("last_cluster() -> int");
  m.def("release_tensors() -> int");
  m.def("release_fences() -> ()");
  m.def("fenced(Tensor x, bool low) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(FASTMLP_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("configure", TORCH_BOX(&fastmlp::configure));
  m.impl("last_cluster", TORCH_BOX(&fastmlp::last_cluster));
  m.impl("release_tensors", TORCH_BOX(&fastmlp::release_tensors));
  m.impl("release_fences", TORCH_BOX(&fastmlp::release_fences));
  m.impl("fenced", TORCH_BOX(&fastmlp::fenced));
}
