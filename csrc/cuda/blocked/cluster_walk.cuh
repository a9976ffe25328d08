// The warps of the cluster's chain that walk through its steps.
#pragma once
#include "cuda/blocked/cluster_chain.cuh"

namespace fastmlp {
namespace {

template <typename Chain>
class ClusterWalkingWarp {
  static constexpr int kWarps = Chain::kWarps, kParts = Chain::kParts, kTiles = Chain::kTiles;
  static constexpr int kSlots = Chain::kSlots, kHalves = Chain::kHalves;
  static constexpr int kStride = Chain::kStride, kColumnStride = Chain::kColumnStride;
  using Lane = LaneClasses<kSlots>;
  const Chain& chain;
  const ChainSgd<float> sgd;
  const int lane, group, quad;
  const bool leads;  // the cluster
  // Of the last layer: weight of classes group (+ 8) and units 2 quad (+ 1), as a fragment has it;
  // biases of these classes, 0 where the warp does not lead, -inf where it does and there is none.
  float w[kParts][4], bias2[kHalves] = {};
  float h[kTiles][kParts][2];     // of row group, units 2 quad (+ 1); before that what gives it
  float base[kTiles][kParts][2];  // the same of the next step, without the newest tiles
  float carry[kParts][2] = {};    // what the newest tile does to the step after the next
  float h_of_unit[kTiles][kParts][2];        // of unit group, rows 2 quad (+ 1)
  RightParts right_of_unit[kParts][kTiles];  // the same
  LeftParts left_of_unit[kHalves];           // weight of units group, of classes kSlots quad + ..
  LeftParts newest[kTiles] = {};             // factors of the next step's rows
  Peer peers[kClusterBlocks / kWarps];       // to whom this warp sends
  // Of row group: the label; the largest logit and the sum of exponentials less it; its gradients,
  // which are row_scale softmax - hot.
  int label[kTiles];
  float margin[kTiles][kSlots], sum[kTiles];
  float hot[kTiles][kSlots], row_scale[kTiles];
  float scale;  // of a step's rows

 public:
  __device__ explicit ClusterWalkingWarp(const Chain& chain_)
      : chain(chain_),
        sgd(chain_.net.options),
        lane(chain_.lane),
        group(chain_.group),
        quad(chain_.quad),
        leads(chain_.rank == 0 && chain_.warp == 0) {
    for_weights([&](float& x, int c, int unit, bool there) {
      x = there ? chain.net.weight2[c * chain.block.hidden + unit] : 0.0f;
    });
#pragma unroll
    for (int k = 0; k < kHalves; ++k) {
      const int c = group + 8 * k;
      if (leads) bias2[k] = c < chain.block.classes ? chain.net.bias2[c] : -kInfinity<float>;
    }
#pragma unroll
    for (int k = 0; k < kClusterBlocks / kWarps; ++k) {
      peers[k] = peer_of(chain.table, chain.warp + k * kWarps);
    }
  }

  __device__ void run() {
    if (chain.steps > 0) begin(0);
    for (int step = 0; step < chain.steps; ++step) {
      sum_logits(step);
      // All warps have written their sums of logits, which all read; and have read what blocks sent
      // for the step before, in whose place they will send when they have what this one sends now.
      barrier_of(1, kWarps * kWarp);
      send_logits(step);
      // While these are on their way:
      transpose(step);
      if (leads && step > 0) note_losses(step - 1);
      prepare(step);
      wait_for_bytes(chain.mail + step % 2, step / 2 % 2);
      Lane d[kTiles];
      take_loss(step, d);
      walk_backward(step, d);
    }
    if (leads && chain.steps > 0) note_losses(chain.steps - 1);
  }

  // The last layer as it is now, to global memory.
  __device__ void store() {
    for_weights([&](float& x, int c, int unit, bool there) {
      if (there) chain.net.weight2[c * chain.block.hidden + unit] = x;
    });
    if (!leads || quad > 0) return;
#pragma unroll
    for (int k = 0; k < kHalves; ++k) {
      const int c = group + 8 * k;
      if (c < chain.block.classes) chain.net.bias2[c] = bias2[k];
    }
  }

 private:
  __device__ int class_of(int slot) const { return kSlots * quad + slot; }

  template <typename F>
  __device__ void for_weights(F f) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = group + i / 2 * 8, unit = chain.first_unit(part) + 2 * quad + i % 2;
        f(w[part][i], c, unit, unit < chain.block.hidden && c < chain.block.classes);
      }
    }
  }

  // ---- forward ----

  // What the first step's ReLU gets.
  __device__ void begin(int step) {
    take_base(step);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int e = 0; e < 2; ++e) h[t][part][e] = base[t][part][e];
      }
    }
  }

  // base of a step.
  __device__ void take_base(int step) {
    wait_for(chain.ready + step);
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const auto slot =
            *reinterpret_cast<const uint2*>(&chain.slot(chain.first_tile(step) + t, part));
        base[t][part][0] = float_of_bits(slot.x) + carry[part][0];
        base[t][part][1] = float_of_bits(slot.y) + carry[part][1];
      }
    }
  }

  // h = relu(what it gets), and this warp's sums of logits.
  __device__ void sum_logits(int step) {
    LeftParts left[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float (&x)[4] = w[part];
      left[part] = kHalves > 1 ? left_parts(x[0], x[2], x[1], x[3]) : left_parts(x[0], 0, x[1], 0);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      RightParts right[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          h[t][part][e] = ActivationRow<Activation::kRelu>::forward(h[t][part][e]);
        }
        right[part] = right_parts(h[t][part][0], h[t][part][1]);
      }
      const Sums logits = sum_products(left, right);
      float* to = partial_of(step, chain.warp, t) + 2 * quad * kStride + group;
#pragma unroll
      for (int i = 0; i < 2 * kHalves; ++i)
        to[i % 2 * kStride + i / 2 * 8] = logits.v[i] + bias2[i / 2];
    }
  }
  __device__ float* partial_of(int step, int warp, int t) const {
    return chain.partial + ((step % 2 * kWarps + warp) * kTiles + t) * (kTileRows * kStride);
  }

  // The inbox's numbers of a lane.
  __device__ float* inbox_of(int step, int rank, int t, int of_lane) const {
    return chain.inbox +
           (((step % 2 * kClusterBlocks + rank) * kTiles + t) * kWarp + of_lane) * kSlots;
  }

  // Sends the block's sums of logits to every block; each warp sends to some.
  __device__ void send_logits(int step) const {
    Inbox* mail = chain.mail + step % 2;
    if (chain.warp == 0 && lane == 0) {
      const int lanes = 8 * ((chain.block.classes + kSlots - 1) / kSlots);
      expect_bytes(mail, kClusterBlocks * kTiles * lanes * kSlots * sizeof(float));
    }
    if (!chain.has_classes(lane)) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      Lane parts[kWarps];
#pragma unroll
      for (int k = 0; k < kWarps; ++k) {
        parts[k] = *reinterpret_cast<const Lane*>(partial_of(step, k, t) + group * kStride +
                                                  kSlots * quad);
      }
      const Lane all = sum_of(parts);
#pragma unroll
      for (int k = 0; k < kClusterBlocks / kWarps; ++k) {
        send(all.v, inbox_of(step, chain.rank, t, lane), mail, peers[k]);
      }
    }
  }

  // Added up pairwise.
  template <int kCount>
  __device__ static Lane sum_of(Lane (&parts)[kCount]) {
#pragma unroll
    for (int half = kCount / 2; half > 0; half /= 2) {
#pragma unroll
      for (int k = 0; k < half; ++k) {
#pragma unroll
        for (int s = 0; s < kSlots; ++s) parts[k].v[s] += parts[k + half].v[s];
      }
    }
    return parts[0];
  }

  // ---- while the logits are on their way ----

  // Activations and the last layer's weight as walk_backward takes them.
  __device__ void transpose(int step) {
    float* column = chain.columns;
    constexpr int kTile = kTileRows * kColumnStride;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        *reinterpret_cast<float2*>(column + (t * kParts + part) * kTile + group * kColumnStride +
                                   2 * quad) = {h[t][part][0], h[t][part][1]};
      }
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      float* to = chain.weight + (part * 8 + 2 * quad) * kStride + group;
#pragma unroll
      for (int i = 0; i < 2 * kHalves; ++i) to[i % 2 * kStride + i / 2 * 8] = w[part][i];
    }
    __syncwarp();  // all lanes have written what others read
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float* from = column + (t * kParts + part) * kTile + 2 * quad * kColumnStride + group;
#pragma unroll
        for (int e = 0; e < 2; ++e) h_of_unit[t][part][e] = from[e * kColumnStride];
        right_of_unit[part][t] = right_parts(h_of_unit[t][part][0], h_of_unit[t][part][1]);
      }
    }
    Lane rows[2] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      rows[part] = *reinterpret_cast<const Lane*>(chain.weight + (part * 8 + group) * kStride +
                                                  kSlots * quad);
    }
#pragma unroll
    for (int k = 0; k < kHalves; ++k) {
      left_of_unit[k] = left_parts(rows[0].v[2 * k], rows[1].v[2 * k], rows[0].v[2 * k + 1],
                                   rows[1].v[2 * k + 1]);
    }
  }

  // What take_loss and walk_backward need of the next step and of this one's labels.
  __device__ void prepare(int step) {
    if (step == 0 || step + 1 == chain.steps) {  // only the last may be short
      const auto rows = static_cast<float>(chain.rows_of(step));
      scale = 1.0f / rows;
      if (sgd.average) scale /= rows;
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int tile = chain.first_tile(step) + t;
      label[t] = chain.labels[tile * kTileRows + group];
      row_scale[t] = label[t] >= 0                 ? scale
                     : label[t] == Chain::kMissing ? 0.0f
                                                   : static_cast<float>(NAN);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) hot[t][s] = class_of(s) == label[t] ? scale : 0.0f;
    }
    if (step + 1 >= chain.steps) return;
    take_base(step + 1);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const typename Chain::Slot* from =
          chain.newest + (chain.first_tile(step) + t) * (2 * kWarp) + lane;
      const typename Chain::Slot big = from[0], small = from[kWarp];
#pragma unroll
      for (int i = 0; i < 4; ++i) newest[t].big[i] = big.v[i], newest[t].small[i] = small.v[i];
    }
  }

  // What the loss of a step's rows is made of; by one warp of the cluster.
  __device__ void note_losses(int step) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      int first = 4 * kSlots;  // of the classes with the largest logit
      float mine = 0;          // the label's margin
#pragma unroll
      for (int s = kSlots - 1; s >= 0; --s) {
        if (margin[t][s] == 0) first = class_of(s);
        if (class_of(s) == label[t]) mine = margin[t][s];
      }
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) {
        const int other = shuffle_xor(first, distance);
        first = other < first ? other : first;
      }
      const int row = (chain.first_tile(step) + t) * kTileRows + group;
      const bool known = label[t] >= 0;
      if (label[t] == Chain::kMissing || quad != (known ? label[t] / kSlots : 0)) continue;
      chain.sums[row] = known ? sum[t] : static_cast<float>(NAN);
      chain.margins[row] = mine;
      chain.hits[row] = first == label[t] ? 1.0f : 0.0f;
    }
  }

  // ---- the loss and backward ----

  // The gradients of the logits of row group, four lanes a row, and what its loss is made of.
  __device__ void take_loss(int step, Lane (&d)[kTiles]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float largest = -kInfinity<float>;
      Lane parts[kClusterBlocks];
      const int of_lane = chain.has_classes(lane) ? lane : Chain::kNoClasses;
#pragma unroll
      for (int k = 0; k < kClusterBlocks; ++k) {
        parts[k] = *reinterpret_cast<const Lane*>(inbox_of(step, k, t, of_lane));
      }
      const Lane all = sum_of(parts);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) largest = fmaxf(largest, all.v[s]);
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));
      float e[kSlots];
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        margin[t][s] = all.v[s] - largest;
        e[s] = quick_exp(margin[t][s]);
      }
      float total = e[0] + e[1];
      if constexpr (kSlots > 2) total += e[2] + e[3];
      total += shuffle_xor(total, 1);
      total += shuffle_xor(total, 2);
      sum[t] = total;
      const float each = row_scale[t] * quick_reciprocal(total);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) d[t].v[s] = e[s] * each - hot[t][s];
      Lane* to = reinterpret_cast<Lane*>(dlogits_of(t) + group * kStride + kSlots * quad);
      if constexpr (kSlots == 2) {
        *to = {{d[t].v[0], d[t].v[1]}};
      } else {
        *to = {{d[t].v[0], d[t].v[1], d[t].v[2], d[t].v[3]}};
      }
    }
    __syncwarp();  // all lanes have written what others read
  }
  __device__ float* dlogits_of(int t) const { return chain.dlogits + t * (kTileRows * kStride); }

  // The gradients of the hidden units, what they do to the next step, and the last layer's step.
  __device__ void walk_backward(int step, const Lane (&d)[kTiles]) {
    RightParts gradients[kParts][kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      RightParts right[kHalves];
#pragma unroll
      for (int k = 0; k < kHalves; ++k) right[k] = right_parts(d[t].v[2 * k], d[t].v[2 * k + 1]);
      const Sums dh = sum_products(left_of_unit, right);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float g[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          g[e] =
              ActivationRow<Activation::kRelu>::backward(dh.v[2 * part + e], h_of_unit[t][part][e]);
        }
        const RightParts x = gradients[part][t] = right_parts(g[0], g[1]);
        chain.slot(chain.first_tile(step) + t,
                   part) = {{x.big[0], x.big[1], x.small[0], x.small[1]}};
      }
    }
    move_weight();
    add_newest(gradients);
    __syncwarp();  // all lanes have written before lane 0 says so
    if (lane == 0) raise(chain.done + step);
  }

  // What the next step's ReLU gets.
  __device__ void add_newest(const RightParts (&gradients)[kParts][kTiles]) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const Sums sums = sum_products(newest, gradients[part]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        h[0][part][e] = base[0][part][e] + sums.v[e];
        if constexpr (kTiles > 1) {
          h[1][part][e] = base[1][part][e] + sums.v[2 + e];
        } else {
          carry[part][e] = sums.v[2 + e];
        }
      }
    }
  }

  // The step of SGD on the last layer.
  __device__ void move_weight() {
    LeftParts left[kTiles];
    float sums[2] = {};  // of rows 2 quad and 2 quad + 1, of classes group and group + 8
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const float* from = dlogits_of(t) + 2 * quad * kStride + group;
      const float high[2] = {kHalves > 1 ? from[8] : 0.0f, kHalves > 1 ? from[kStride + 8] : 0.0f};
      left[t] = left_parts(from[0], high[0], from[kStride], high[1]);
      sums[0] += from[0] + from[kStride];
      sums[1] += high[0] + high[1];
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const Sums dw = sum_products(left, right_of_unit[part]);
#pragma unroll
      for (int i = 0; i < 4; ++i) w[part][i] = sgd.moved(w[part][i], dw.v[i], nullptr);
    }
#pragma unroll
    for (int k = 0; k < kHalves; ++k) {
      float sum = sums[k] + shuffle_xor(sums[k], 1);
      sum += shuffle_xor(sum, 2);
      if (leads && group + 8 * k < chain.block.classes)
        bias2[k] = sgd.moved(bias2[k], sum, nullptr);
    }
  }
};

}  // namespace
}  // namespace fastmlp
