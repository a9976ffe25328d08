// How a shape maps on a chip, and why: plain C++, no torch, no CUDA.
#pragma once
#include <algorithm>
#include <cstdint>

namespace fastmlp {

// Who computes a layer's matrix products.
struct LinearPlan {
  bool ours;  // our own kernels; otherwise ATen's BLAS
  const char* reason;
};

// By measurement on an H200 (benchmarks/engine_log.md): in 16 bits the library's tensor cores are
// the faster from 8 million multiply-adds on; in float32 ours are up to 200 million at least.
inline LinearPlan plan_linear_cuda(int64_t batch, int64_t in, int64_t out, bool doubles,
                                   bool half_width) {
  const int64_t weights = std::max<int64_t>(in, 1) * std::max<int64_t>(out, 1);
  const int64_t most = half_width ? (int64_t{1} << 23) - 1 : int64_t{1} << 29;
  if (doubles) return {false, "float64: the library's kernels"};
  if (batch > 256) return {false, "large: more than 256 rows"};
  if (weights > most / std::max<int64_t>(batch, 1)) return {false, "large: too much arithmetic"};
  return {true, "skinny: up to 256 rows, split along the sum to fill the GPU"};
}

// How our CUDA kernel makes c (m, n) as a sum over k.
struct ProductPlan {
  int tile_m;      // rows of c that a block makes, of 64 columns
  int64_t splits;  // parts of k, whose sums a second kernel adds up in order
  int64_t chunk;   // length of a part
};

inline ProductPlan plan_product(int64_t m, int64_t n, int64_t k, int64_t processors) {
  constexpr int64_t kTileN = 64, kStep = 64, kLeastChunk = 128, kMostSplits = 64;
  // Shorter sums are over before a second kernel would start. Weight gradients are among them: they
  // sum over a batch, and need not be split, as their rows' sums (the bias's gradient) cannot be.
  constexpr int64_t kLongSum = 512;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int tile_m = m <= 16 ? 16 : m <= 32 ? 32 : 64;
  const auto at_least_1 = [](int64_t a) { return std::max<int64_t>(a, 1); };
  const int64_t tiles = at_least_1(ceil_div(m, tile_m)) * at_least_1(ceil_div(n, kTileN));
  const int64_t wanted = ceil_div(2 * processors, tiles);  // two blocks for each processor
  const int64_t most = k < kLongSum ? 1 : std::min(k / kLeastChunk, kMostSplits);
  const int64_t splits = at_least_1(std::min(wanted, most));
  const int64_t chunk = at_least_1(ceil_div(ceil_div(k, splits), kStep)) * kStep;
  return {tile_m, at_least_1(ceil_div(k, chunk)), chunk};
}

// What a GPU has; capability is 90 for compute capability 9.0. A block of threads may ask for so
// many bytes of shared memory.
struct Gpu {
  int processors;
  int capability;
  int shared_bytes;
};

// Whether a GPU's tensor cores multiply bfloat16 and TF32, and so whether its kernels for them are
// compiled: those of 7.5 know float16 alone.
inline bool has_tf32(int capability) { return capability >= 80; }

// How float32 is multiplied on a GPU. Of what may be asked for, the first two leave the choice to
// the plan; the others are for tests and benchmarks.
enum class MatmulPrecision {
  kAccurate,     // as accurately as in float32
  kTf32Allowed,  // in TF32 where that is faster
  kFma,
  kThreeTf32,  // three products of the operands' TF32 parts, which are as accurate as float32
  kTf32,
};
constexpr int kMatmulPrecisionCount = 5;

struct MatmulPrecisionPlan {
  MatmulPrecision precision;  // one of the last three
  const char* reason;
};

// c (m, n) as a sum over k, in float32 or, where torch allows it, TF32. In the time in which an
// H100 reads a number from memory it does 40 multiply-adds by FMA; half as many are the bound here,
// as the weights of small networks stay in its level-2 cache, which is faster. Below it FMA waits
// for numbers anyway, and is exact. Above it arithmetic counts: 67 TFLOP/s by FMA, some 300 by
// tensor cores in TF32, a third of that by three products. So it is on other GPUs for data centers;
// on the rest, such as 8.6, 8.9 and 12.0, tensor cores do TF32 at about the rate of FMA.
inline MatmulPrecisionPlan plan_matmul_precision(int64_t m, int64_t n, int64_t k, int capability,
                                                 MatmulPrecision wanted) {
  constexpr double kWorkPerNumber = 20;
  if (!has_tf32(capability))
    return {MatmulPrecision::kFma, "FMA: this GPU's tensor cores know float16 alone"};
  if (wanted >= MatmulPrecision::kFma) return {wanted, "as asked for"};
  const double work = 1.0 * m * n * k, numbers = 1.0 * m * n + 1.0 * m * k + 1.0 * n * k;
  if (work < kWorkPerNumber * numbers) return {MatmulPrecision::kFma, "FMA: bound by reading"};
  if (wanted == MatmulPrecision::kTf32Allowed)
    return {MatmulPrecision::kTf32, "TF32, which torch allows"};
  const bool for_data_centers = capability == 80 || capability == 90 || capability / 10 == 10;
  if (!for_data_centers)
    return {MatmulPrecision::kFma, "FMA: this GPU's tensor cores are no faster"};
  return {MatmulPrecision::kThreeTf32, "three TF32 products: bound by arithmetic"};
}

// Whether the kernels that read operands straight into registers (csrc/cuda/linear_direct.cu) make
// a layer's products, rather than those that take tiles of them through shared memory.
struct DirectPlan {
  bool direct;
  const char* reason;
};

// Whether they reach all of an operand, whose rows' elements are neighbours: an int has to count
// from the first element to the last, and a few rows further.
inline bool is_in_reach(int64_t rows, int64_t stride) {
  constexpr int64_t kMost = 1 << 30, kMoreRows = 64;
  return stride <= kMost / (rows + kMoreRows);
}

// in_reach: all operands are.
inline DirectPlan plan_direct(bool in_reach, int capability, MatmulPrecision wanted) {
  if (wanted > MatmulPrecision::kFma && has_tf32(capability)) return {false, "as asked for"};
  if (!in_reach) return {false, "rows that are not contiguous, or too far apart"};
  return {true, "straight into registers"};
}

// The same for linear. A tile's products wait for each other step by step, some microseconds in
// all, however small they are. The direct kernel reads 12 numbers for each k of 8 rows by 4
// outputs: with 5/4 million k, 60 MB of float32, that has taken as long.
inline DirectPlan plan_direct_linear_or_tiles(int64_t batch, int64_t in, int64_t out, bool in_reach,
                                              int capability, MatmulPrecision wanted) {
  constexpr double kMostReads = 1.25 * (1 << 20);
  const DirectPlan plan = plan_direct(in_reach, capability, wanted);
  if (!plan.direct) return plan;
  const double tiles = 1.0 * ((batch + 7) / 8) * ((out + 3) / 4);
  if (tiles * in > kMostReads) return {false, "too much to read without tiles"};
  return plan;
}

constexpr int kMostDirectWarps = 12;

// How linear is cut up there. A warp makes 8 rows of 4 outputs, each of its lanes a part of their
// sums.
struct DirectLinearPlan {
  int out_bits;  // a block has 2^out_bits such tiles beside each other
  int k_warps;   // warps of a block that share a tile's sums
  int column_blocks, row_blocks;
};

inline DirectLinearPlan plan_direct_linear(int64_t batch, int64_t in, int64_t out,
                                           int64_t processors) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t reads = std::max<int64_t>(ceil_div(in, 128), 1);  // a warp's of a row
  const int64_t rounds = ceil_div(reads, kMostDirectWarps);
  const int64_t k_warps = ceil_div(reads, rounds), row_blocks = ceil_div(batch, 8);
  // Warps of a block share x in its first-level cache, as long as blocks fill the GPU.
  int out_bits = 0;
  const auto columns = [&](int bits) { return ceil_div(out, int64_t{4} << bits); };
  while (k_warps << (out_bits + 1) <= kMostDirectWarps &&
         row_blocks * columns(out_bits + 1) > processors / 2) {
    ++out_bits;
  }
  return {out_bits, static_cast<int>(k_warps), static_cast<int>(columns(out_bits)),
          static_cast<int>(row_blocks)};
}

// How linear_backward is cut up there: the first blocks make dx, the others dw and db. Of a block's
// 8 warps 2^bits make different rows of a product, 8 each, and the others share these.
struct DirectGradientsPlan {
  int row_tiles;  // for few rows: of 8 rows of dx, that a block makes one after the other
  int row_bits;   // for more: dx is made as dw is; else -1
  int out_bits;   // of dw
  int dx_blocks, dw_blocks;
};

inline DirectGradientsPlan plan_direct_gradients(int64_t batch, int64_t in, int64_t out,
                                                 int64_t processors, bool dx, bool dw, bool db) {
  constexpr int64_t kFewRows = 32;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  DirectGradientsPlan plan{1, -1, 0, 0, 0};
  // As many different rows as there are, but so few that blocks fill the GPU.
  const auto bits_of = [&](int64_t m, int64_t n, int64_t k) {
    int bits = 3;
    while (bits > 0 && 4 << bits >= m) --bits;
    while (bits > 1 && ceil_div(m, 8 << bits) * ceil_div(n, 128) < processors &&
           16 >> bits <= ceil_div(k, 8)) {
      --bits;
    }
    return bits;
  };
  if (batch <= kFewRows) {
    const int64_t row_tiles = ceil_div(batch, 8), columns = ceil_div(in, 16);
    // Rows that a block makes one after the other share the weight in its first-level cache.
    while (plan.row_tiles < row_tiles &&
           columns * ceil_div(row_tiles, 2 * plan.row_tiles) > processors) {
      plan.row_tiles *= 2;
    }
    if (dx) plan.dx_blocks = static_cast<int>(columns * ceil_div(row_tiles, plan.row_tiles));
  } else {
    plan.row_bits = bits_of(batch, in, out);
    const int64_t row_blocks = ceil_div(batch, 8 << plan.row_bits);
    if (dx) plan.dx_blocks = static_cast<int>(row_blocks * ceil_div(in, 128));
  }
  plan.out_bits = bits_of(out, dw ? in : 1, batch);
  const int64_t out_blocks = ceil_div(out, 8 << plan.out_bits);
  if (dw || db) plan.dw_blocks = static_cast<int>(out_blocks * (dw ? ceil_div(in, 128) : 1));
  return plan;
}

enum class Numbers { kFloat16, kBrainFloat16, kWider };

// By measurement (benchmarks/layer_time.py).
inline LinearPlan plan_linear_cpu(int64_t batch, int64_t in, int64_t out, Numbers numbers) {
  if (in < 16 || out < 16) return {true, "narrow: operands stay in cache whatever the batch"};
  if (numbers == Numbers::kFloat16) return {true, "float16: ATen's own products are slow"};
  if (numbers == Numbers::kBrainFloat16 && batch > 4)
    return {false, "bfloat16: the BLAS has matrix instructions"};
  if (batch <= 512) return {true, "skinny: up to 512 rows, panel by panel through the cache"};
  return {false, "large: the BLAS packs both operands"};
}

// Steps in a block of blocked SGD, of about one, two, three or six panels of 48 rows. Longer blocks
// read and write the weights less often, which pays where these are too large for the caches; their
// Gram matrix takes more arithmetic, which counts where there are few hidden units. With momentum a
// block of several steps needs both products twice, so it has to save more, or is not worth it.
// Where images come again and again, `fresh` is how many a step adds to those before it, fewer than
// a batch: products are of different images alone, and steps nearly free; but the Gram matrix grows
// with the square of a batch, which has few steps in an epoch to make up for it if it is large.
inline int64_t plan_blocked_cpu(int64_t batch, int64_t hidden, bool momentum, int64_t fresh) {
  constexpr int64_t kLargestRepeated = 2048;
  const int64_t widest = momentum ? 96 : hidden > 1024 ? 288 : hidden > 512 ? 144 : 96;
  const int64_t rows = hidden <= 32 ? 48 : widest;
  if (fresh < batch && batch <= kLargestRepeated) {
    return 1 + (std::max(rows, 2 * batch) - batch) / std::max<int64_t>(fresh, 1);
  }
  if (momentum && batch >= 32) return 1;
  return batch < rows ? rows / batch : 1;
}

// How our CUDA kernel walks through the steps of a block (csrc/cuda/blocked/chain.cu).
struct ChainPlan {
  const char* unsupported_reason;  // it cannot, in words; null where it can
  int tile;                        // rows of a batch that a thread works on at once
  int units;                       // hidden units of a thread
  int threads;
  bool keeps_weight;  // the last layer's weight stays in shared memory throughout
  // Where its arrays begin in shared memory, and all of it, in numbers; the recurrence begins it.
  int bias, weight, partial, dlogits, history, history_size, losses, hits, size;
};

// Fills in where the arrays begin.
inline void place_chain(ChainPlan& plan, int64_t batch, int64_t hidden, int64_t classes,
                        int64_t steps) {
  const int64_t rows = (batch + plan.tile - 1) / plan.tile * plan.tile, warps = plan.threads / 32;
  int64_t end = 0;
  const auto place = [&](int64_t count) {
    const int64_t begin = end;
    end += (count + 3) / 4 * 4;  // so that each begins at a multiple of 16 bytes
    return static_cast<int>(begin);
  };
  place((steps + 1) * 6);
  plan.bias = place(classes);
  plan.weight = place(plan.keeps_weight ? classes * hidden : 0);
  plan.partial = place(2 * warps * classes * plan.tile);
  plan.dlogits = place(classes * rows);
  plan.history_size = static_cast<int>(rows * (steps - 1) * batch);
  plan.history = place(std::min<int64_t>(steps - 1, 2) * plan.history_size);
  plan.losses = place(batch * steps);
  plan.hits = place(batch * steps);
  plan.size = static_cast<int>(end);
}

inline ChainPlan plan_chain_cuda(int64_t batch, int64_t hidden, int64_t classes, int64_t steps,
                                 bool doubles, const Gpu& gpu) {
  constexpr int kMostSharedBytes = 99 << 10;  // what every GPU from 8.0 on gives a block; 7.5: 64
  const int64_t shared_bytes = std::min(kMostSharedBytes, gpu.shared_bytes);
  ChainPlan plan{};
  const auto refused = [&](const char* reason) {
    plan.unsupported_reason = reason;
    return plan;
  };
  if (batch < 1 || batch > 128) return refused("its kernel takes batches of 1 to 128 images");
  if (hidden < 1 || hidden > 1024) return refused("its kernel takes up to 1024 hidden units");
  if (classes < 1 || classes > 128) return refused("its kernel takes up to 128 classes");
  if (steps < 1 || steps > 1024 / batch) return refused("its blocks have 1 to 1024 images");
  // More units or wider tiles share more of what is read, as long as they fit into registers.
  plan.units = hidden > 512 ? 4 : hidden > 128 || doubles ? 2 : 1;
  plan.threads = static_cast<int>((hidden + 32 * plan.units - 1) / (32 * plan.units) * 32);
  plan.tile = doubles || batch <= 2 ? 2 : batch <= 4 || plan.units == 4 ? 4 : 8;
  for (; plan.tile >= 2; plan.tile /= 2) {
    for (const bool keeps : {true, false}) {
      plan.keeps_weight = keeps && steps > 1;  // in one step it is read once
      place_chain(plan, batch, hidden, classes, steps);
      if (plan.size * (doubles ? 8 : 4) <= shared_bytes) return plan;
    }
  }
  return refused("such a block does not fit into a GPU's shared memory");
}

// How the pipelined kernel (csrc/cuda/blocked/pipelined_chain.cu) walks through the steps of a
// block, in tiles of 8 rows of a batch. A warp walks with 32 hidden units, one to a lane, and a
// second warp adds up for it what earlier steps have done to later ones.
struct PipelinedChainPlan {
  const char* unsupported_reason;  // it cannot, in words; null where it can
  int tiles_of_step, tiles;        // tiles of a batch, of the block
  int warps;                       // that walk, 1, 2, 4 or 8; as many again add up
  // Where its arrays begin in shared memory, and all of it, in numbers; the recurrence begins it.
  int slots, factors, weight, partial, dlogits, labels, sums, margins, hits, flags, size;
};

inline PipelinedChainPlan plan_pipelined_chain(int64_t batch, int64_t hidden, int64_t classes,
                                               int64_t steps, bool doubles, const Gpu& gpu) {
  constexpr int kRows = 8;
  PipelinedChainPlan plan{};
  const auto refused = [&](const char* reason) {
    plan.unsupported_reason = reason;
    return plan;
  };
  if (doubles) return refused("float64");
  if (!has_tf32(gpu.capability)) return refused("a GPU without tensor cores for TF32");
  if (batch < 1 || batch > 128 || steps < 1 || steps > 1024 / batch) return refused("its rows");
  if (hidden < 1 || hidden > 256) return refused("more than 256 hidden units");
  if (classes < 1 || classes > 16) return refused("more than 16 classes");
  plan.tiles_of_step = static_cast<int>((batch + kRows - 1) / kRows);
  plan.tiles = static_cast<int>(steps) * plan.tiles_of_step;
  for (plan.warps = 1; 32 * plan.warps < hidden;) plan.warps *= 2;
  const int stride = 32 * plan.warps + 4, class_stride = classes <= 4 ? 8 : 24;
  const int pairs = (plan.tiles + 1) / 2, rows = plan.tiles * kRows;
  int end = static_cast<int>(steps + 1) * 6;
  const auto place = [&](int count) {
    const int begin = (end + 3) / 4 * 4;  // a multiple of 16 bytes
    end = begin + count;
    return begin;
  };
  plan.slots = place(rows * stride);
  plan.factors = place(steps > 1 ? 2 * kRows * kRows * pairs * pairs : 0);
  plan.weight = place(32 * plan.warps * class_stride);
  plan.partial = place(2 * plan.warps * kRows * 20);
  plan.dlogits = place(plan.tiles_of_step * kRows * 16);
  plan.labels = place(rows);
  plan.sums = place(rows);
  plan.margins = place(rows);
  plan.hits = place(rows);
  plan.flags = place(2 * 2 * plan.warps * plan.tiles);  // of 8 bytes
  plan.size = (end + 3) / 4 * 4;
  if (plan.size * int64_t{4} > gpu.shared_bytes) return refused("its shared memory");
  return plan;
}

// How the cluster's kernel (csrc/cuda/blocked/cluster_chain.cu) walks through the steps of a block:
// eight thread blocks have an eighth of the hidden units each, and tell each other their sums of
// logits. A warp walks with 8 units or 16, and a second warp adds up for it what earlier steps have
// done to later ones.
constexpr int kClusterBlocks = 8;

struct ClusterChainPlan {
  const char* unsupported_reason;  // it cannot, or need not, in words; null where it can
  int tiles_of_step, tiles;        // tiles of 8 rows, of a batch and of the block
  int warps, parts;                // of a thread block: warps that walk, 2, 4 or 8; times 8 units
  int slots_of_lane;               // classes of a lane, of four that share a row of logits
  // Where its arrays begin in shared memory, and all of it, in numbers; the recurrence begins it.
  int slots, newest, labels, inbox, partial, weight, columns, dlogits, sums, margins, hits, flags,
      size;
};

inline ClusterChainPlan plan_cluster_chain(int64_t batch, int64_t hidden, int64_t classes,
                                           int64_t steps, int64_t networks, bool doubles,
                                           bool momentum, const Gpu& gpu) {
  constexpr int kRows = 8, kLanes = 32;
  ClusterChainPlan plan{};
  const auto refused = [&](const char* reason) {
    plan.unsupported_reason = reason;
    return plan;
  };
  if (doubles) return refused("float64");
  if (momentum) return refused("momentum");
  if (gpu.capability < 90) return refused("a GPU without clusters of thread blocks");
  if (networks * kClusterBlocks > gpu.processors)
    return refused("more networks than an eighth of the multiprocessors");
  if (batch < 1 || batch > 16 || steps < 1 || steps > 1024 / batch) return refused("its rows");
  if (hidden < 64 || hidden > 1024) return refused("fewer than 64 or more than 1024 hidden units");
  if (classes < 1 || classes > 16) return refused("more than 16 classes");
  if (batch > kRows && hidden > 256) return refused("batches above 8 of more than 256 units");
  plan.tiles_of_step = batch <= kRows ? 1 : 2;
  plan.tiles = static_cast<int>(steps) * plan.tiles_of_step;
  plan.parts = hidden <= 512 ? 1 : 2;
  for (plan.warps = 2; kClusterBlocks * kRows * plan.parts * plan.warps < hidden;) plan.warps *= 2;
  plan.slots_of_lane = classes <= 8 ? 2 : 4;
  const int rows = plan.tiles * kRows, units = kRows * plan.parts * plan.warps;
  int end = static_cast<int>(steps + 1) * 6;
  const auto place = [&](int count) {
    const int begin = (end + 3) / 4 * 4;  // a multiple of 16 bytes
    end = begin + count;
    return begin;
  };
  plan.slots = place(plan.tiles * plan.warps * plan.parts * kLanes * 4);
  plan.newest = place(plan.tiles * 2 * kLanes * 4);
  plan.labels = place(rows);
  plan.inbox = place(2 * kClusterBlocks * plan.tiles_of_step * kLanes * plan.slots_of_lane);
  plan.partial = place(2 * plan.warps * plan.tiles_of_step * kRows * 20);
  plan.weight = place(units * 20);
  plan.columns = place(plan.tiles_of_step * units * 12);
  plan.dlogits = place(plan.warps * plan.tiles_of_step * kRows * 20);
  plan.sums = place(rows);
  plan.margins = place(rows);
  plan.hits = place(rows);
  // Of 8 bytes: two of the inbox, and two of each warp and step.
  plan.flags = place(2 * (2 + 2 * plan.warps * static_cast<int>(steps)));
  plan.size = (end + 3) / 4 * 4;
  if (plan.size * int64_t{4} > gpu.shared_bytes) return refused("its shared memory");
  return plan;
}

// How the products between the chains (csrc/cuda/blocked/block_products.cu) are made: a block of
// threads has 16 hidden units to a warp and a slice of the weight's columns, tile by tile.
struct BlockProductsPlan {
  const char* unsupported_reason;  // it cannot, in words; null where it can
  int warps;                       // of a block, 4 or 8
  int unit_blocks;                 // blocks that a network's hidden units take
  int tiles, tiles_of_slice, slices;
};

// Shared memory of a block: factors as fragments of 16 bytes a lane, 8 of 16 rows, in three parts;
// two images' pixels and one's, with what spreads them over the banks; twice the numbers
// of a tile's columns; one for each unit.
template <int kWarps>
constexpr int kProductsBytes =
    kWarps * 8 * 3 * 32 * 16 + 64 * 56 * 4 + 128 * 28 * 4 + 2 * (48 * 8 + 16) + kWarps * 16 * 4;

inline BlockProductsPlan plan_block_products(int64_t rows, int64_t inputs, int64_t planes,
                                             int64_t hidden, int64_t networks, bool doubles,
                                             const Gpu& gpu) {
  constexpr int kTileColumns = 48, kUnits = 16, kPixels = 16;
  constexpr int kMostOfPlane = 33025;  // whose products, up to 255 * 255, an int can add up
  BlockProductsPlan plan{};
  const auto refused = [&](const char* reason) {
    plan.unsupported_reason = reason;
    return plan;
  };
  if (doubles) return refused("float64");
  if (gpu.capability < 80) return refused("a GPU without tensor cores for bfloat16");
  if (rows < 1 || rows > 128) return refused("more than 128 images in a block");
  if (planes < 1 || inputs < 1 || inputs % (kPixels * planes) != 0)
    return refused("planes of pixels that are no multiple of 16");
  if (inputs / planes > kMostOfPlane) return refused("more than 33,025 pixels in a plane");
  if (hidden < 1 || networks < 1 || networks > 65535) return refused("its networks");
  plan.warps = hidden <= 4 * kUnits || gpu.shared_bytes < kProductsBytes<8> ? 4 : 8;
  const int bytes = plan.warps == 8 ? kProductsBytes<8> : kProductsBytes<4>;
  if (gpu.shared_bytes < bytes) return refused("its shared memory");
  plan.unit_blocks = static_cast<int>((hidden + kUnits * plan.warps - 1) / (kUnits * plan.warps));
  plan.tiles = static_cast<int>((inputs + kTileColumns - 1) / kTileColumns);
  // Each slice is a part that must be added up, so as few as keep the GPU busy; where a few tiles
  // are all that a block then has, without the multiprocessors of the chains, which run beside it.
  const int of_processor = plan.warps == 4 && gpu.shared_bytes >= 2 * bytes ? 2 : 1;
  const auto tiles_of_slice = [&](int64_t processors) {
    const int64_t slices = processors * of_processor / (plan.unit_blocks * networks);
    return static_cast<int>(slices > 0 ? (plan.tiles + slices - 1) / slices : plan.tiles);
  };
  constexpr int kFewTiles = 4;
  const int64_t chains = networks * (gpu.capability >= 90 ? kClusterBlocks : 1);
  plan.tiles_of_slice = tiles_of_slice(gpu.processors - chains);
  if (plan.tiles_of_slice > kFewTiles) plan.tiles_of_slice = tiles_of_slice(gpu.processors);
  plan.slices = (plan.tiles + plan.tiles_of_slice - 1) / plan.tiles_of_slice;
  return plan;
}

// Steps in a block of blocked SGD on a GPU: 16 tiles of 8 rows for the pipelined kernel where it
// takes them, else 128 rows. Products of fewer rows take about as long.
inline int64_t plan_blocked_cuda(int64_t batch, int64_t hidden, int64_t classes, bool doubles,
                                 const Gpu& gpu) {
  const int64_t steps = std::max<int64_t>(16 / std::max<int64_t>((batch + 7) / 8, 1), 1);
  if (!plan_pipelined_chain(batch, hidden, classes, steps, doubles, gpu).unsupported_reason) {
    return steps;
  }
  return batch < 128 ? 128 / batch : 1;
}

// Whether a step of the chain, of so many multiply-adds, is worth several threads, which meet half
// a dozen times in it.
inline bool plan_wide_chain_cpu(int64_t work) { return work >= 4 << 20; }

// Whether a block of so many multiply-adds is worth several threads.
inline bool plan_threads_cpu(int64_t work) { return work >= 1 << 20; }

// Whether a training step of so many multiply-adds, in which threads meet twice, is worth several.
inline bool plan_step_threads_cpu(int64_t work) { return work >= 1 << 19; }

}  // namespace fastmlp
