// The schedule of training steps of one network. Plain C++, no torch. Wants FASTMLP_KERNELS
// "steps_kernels.h" to be included before.
#pragma once
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/engine/panels.h"
#include "cpu/engine/row_source.h"
#include "cpu/engine/sparse_batch.h"
#include "plan.h"

namespace fastmlp {

// A network as an operator gets it: for each layer w, b and what the optimizer keeps of them.
template <typename T>
struct StepNetwork {
  std::vector<int64_t> sizes;  // inputs, hidden layers, outputs
  std::vector<T*> parameters;  // w1, b1, w2, ...
  std::vector<T*> first, second;
  const double* options;  // (kStepOptions)
  const int64_t* order;
  int64_t rows;      // of an epoch: the order holds as many for each
  double* losses;    // (steps) out
  int64_t* correct;  // (steps) out
  int64_t steps;
};

template <typename T>
class StepRun {
 public:
  StepRun(const RowData& data, const StepNetwork<T>& network, const Parallel& team)
      : network_(network),
        options_(network.options),
        data_(data),
        reader_(data),
        sparse_(data),
        team_(team),
        activation_(static_cast<Activation>(option(kActivation))),
        batch_(std::min<int64_t>(option(kBatchSize), network.rows)),
        x_(data.sparse() ? 0 : batch_ * row_stride<T>(network.sizes[0])),
        row_losses_(batch_),
        row_hits_(batch_),
        row_weights_(batch_),
        labels_(batch_) {
    const int64_t layers = network.sizes.size() - 1;
    const bool adam = optimizer() != Optimizer::kSgd;
    kind_ = adam                    ? UpdateKind::kAdam
            : network.first.empty() ? UpdateKind::kSgd
                                    : UpdateKind::kMomentum;
    dropout_ = options_[kDropout] > 0;
    const bool apart = dropout_ || saves_input(activation_);
    for (int64_t l = 0; l < layers; ++l) {
      const int64_t inputs = network.sizes[l], outputs = network.sizes[l + 1];
      layers_.emplace_back(inputs, outputs, adam ? 2 : network.first.empty() ? 0 : 1, l > 0);
      const int64_t numbers = batch_ * row_stride<T>(outputs);
      const bool hidden = l + 1 < layers;
      saved_.emplace_back(numbers);
      dz_.emplace_back(numbers);
      h_.emplace_back(hidden && apart ? numbers : 0);
      factors_.emplace_back(hidden && dropout_ ? numbers : 0);
      if (hidden && dropout_) std::fill_n(factors_[l].get(), numbers, T(0));
      std::fill_n(saved_[l].get(), numbers, T(0));
      std::fill_n(h_[l].get(), hidden && apart ? numbers : 0, T(0));
      gradients_.emplace_back(options_[kClipNorm] > 0 ? layers_[l].size : 0);
      for (size_t p = 0; p < layers_[l].panels.size(); ++p) {
        for (int64_t begin = 0; begin <= inputs; begin += kItemInputs) {
          items_.push_back(
              {l, layers_[l].panels[p], begin, std::min(begin + kItemInputs, inputs + 1)});
        }
      }
    }
    squares_.resize(items_.size());
    decayed_.resize(number(kDecayInLoss) != 0 ? items_.size() : 0);
    const int64_t stride = row_stride<T>(network.sizes[0]);
    for (int64_t m = 0; m < batch_ && !data.sparse(); ++m) {
      x_.get()[m * stride + network.sizes[0]] = 1;
    }
    prepare_loss();
  }

  void run() {
    exchange(true);
    const int64_t first = option(kStartStep);
    std::fill_n(network_.losses, network_.steps, std::numeric_limits<double>::quiet_NaN());
    std::fill_n(network_.correct, network_.steps, int64_t{0});
    for (int64_t i = 0; i < network_.steps; ++i) {
      if (!step(first + i, network_.losses[i], network_.correct[i])) break;
    }
    exchange(false);
  }

 private:
  static constexpr int64_t kItemInputs = 64;
  static constexpr int64_t kChunkRows = 96;

  // A part of a layer's update: a panel's inputs [begin, end), the last of all being the bias.
  struct Item {
    int64_t layer;
    Panel panel;
    int64_t begin, end;
  };

  double number(StepOption which) const { return options_[which]; }
  int64_t option(StepOption which) const { return static_cast<int64_t>(options_[which]); }
  Optimizer optimizer() const { return static_cast<Optimizer>(option(kOptimizer)); }
  const T* h(int64_t l) const {
    return dropout_ || saves_input(activation_) ? h_[l].get() : saved_[l].get();
  }
  int64_t outputs() const { return network_.sizes.back(); }

  // Copies the network into the panels, or back.
  void exchange(bool in) {
    for (size_t l = 0; l < layers_.size(); ++l) {
      PanelLayer<T>& layer = layers_[l];
      const PanelWeights<T> all = layer.all();
      const auto move = [&](const std::vector<T*>& tensors, T* panels) {
        if (tensors.empty()) return;
        if (in) {
          layer.pack(tensors[2 * l], tensors[2 * l + 1], panels);
        } else {
          layer.unpack(panels, tensors[2 * l], tensors[2 * l + 1]);
        }
      };
      move(network_.parameters, all.w);
      move(network_.first, all.first);
      move(network_.second, all.second);
      for (const Panel& panel : layer.panels) {
        if (in) layer.transpose(panel, 0, layer.inputs);
      }
    }
  }

  void prepare_loss() {
    loss_ = {};
    loss_.loss = static_cast<Loss>(option(kLoss));
    loss_.smoothing = number(kLabelSmoothing);
    loss_.delta = number(kHuberDelta);
    loss_.total_class_weight = outputs();
    if (data_.class_weight) {
      class_weight_.assign(data_.class_weight, data_.class_weight + outputs());
      loss_.class_weight = class_weight_.data();
      loss_.total_class_weight = 0;
      for (T weight : class_weight_) loss_.total_class_weight += weight;
    }
    if (loss_.loss != Loss::kCrossEntropy) targets_.resize(batch_ * outputs());
  }

  // Reads what the loss looks at of a batch; returns what its loss is divided by.
  double open_batch(const int64_t* rows, int64_t count) {
    const bool weighted = data_.row_weights || data_.class_weight;
    double total = 0;
    for (int64_t m = 0; m < count; ++m) {
      const int64_t row = rows[m];
      if (loss_.loss == Loss::kCrossEntropy) {
        labels_[m] = data_.label(row);
      } else {
        for (int64_t o = 0; o < outputs(); ++o) {
          const int64_t at = row * outputs() + o;
          targets_[m * outputs() + o] = data_.targets ? data_.targets[at] : data_.float_targets[at];
        }
      }
      if (!weighted) continue;
      row_weights_[m] = data_.row_weights ? data_.row_weights[row] : 1.0;
      total += row_weights_[m] * (data_.class_weight ? class_weight_[labels_[m]] : T(1));
    }
    const double divisor = weighted && option(kWeightMean) ? total : count;
    return divisor != 0 ? divisor : std::numeric_limits<double>::infinity();
  }

  // Takes a step; returns false, and changes no parameter, where its loss is not finite.
  bool step(int64_t number_of_step, double& loss, int64_t& correct) {
    const int64_t of_epoch = (network_.rows + batch_ - 1) / batch_;
    epoch_ = number_of_step / of_epoch;
    step_ = number_of_step % of_epoch;
    const int64_t first = step_ * batch_;
    rows_ = network_.order + epoch_ * network_.rows + first;
    count_ = std::min(batch_, network_.rows - first);
    ahead_ = std::min(batch_, network_.rows - first - count_);
    const double divisor = open_batch(rows_, count_);
    if (data_.sparse()) {
      sparse_.open(rows_, count_);
      sparse_.sort();
    }
    const double scale = number(kLossScale) / divisor;
    loss_.scale = option(kStepGradAverage) ? scale / count_ : scale;
    const int64_t threads = team_.threads();
    const int64_t parts = threads * ((count_ + threads * kChunkRows - 1) / (threads * kChunkRows));
    const int64_t part = ((count_ + parts - 1) / parts + 3) / 4 * 4;
    chunk_ = part;
    team_.run((count_ + part - 1) / part, [this](int64_t i) {
      rows_forward_backward(i * chunk_, std::min(count_, (i + 1) * chunk_));
    });
    loss = 0;
    for (int64_t m = 0; m < count_; ++m) loss += row_losses_[m];
    loss *= scale;
    if (!std::isfinite(loss)) return false;
    for (int64_t m = 0; m < count_; ++m) correct += row_hits_[m];
    prepare_update(number_of_step, divisor);
    team_.run(items_.size(), [this](int64_t i) { item_gradient(i); });
    for (double part : decayed_) loss += number(kDecayInLoss) * update_.weight_decay / 2 * part;
    if (options_[kClipNorm] > 0) clip_and_update();
    return true;
  }

  // Everything of some rows of the batch that needs no other row.
  void rows_forward_backward(int64_t begin, int64_t end) {
    const int64_t count = end - begin, features = network_.sizes[0];
    const int64_t x_stride = row_stride<T>(features);
    for (int64_t m = begin; m < end && !data_.sparse(); ++m) {
      if (m < ahead_) reader_.prefetch(rows_[count_ + m]);
      reader_.read(rows_[m], x_.get() + m * x_stride);
    }
    const T* x = data_.sparse() ? nullptr : x_.get() + begin * x_stride;
    int64_t stride = x_stride;
    const int64_t last = layers_.size() - 1;
    for (int64_t l = 0; l <= last; ++l) {
      const PanelLayer<T>& layer = layers_[l];
      const int64_t y_stride = row_stride<T>(layer.outputs), at = begin * y_stride;
      if (!x) {
        FASTMLP_BEST_ISA(sparse_forward<T>)(sparse_.rows(), begin, end, layer.all().w, layer.inputs,
                                            layer.outputs, saved_[l].get(), y_stride);
      } else {
        FASTMLP_BEST_ISA(panel_forward<T>)(x, stride, count, layer.all().w, layer.inputs + 1,
                                           layer.outputs, saved_[l].get() + at, y_stride);
      }
      if (l == last) break;
      if (dropout_) draw_dropout(l, begin, end);
      FASTMLP_BEST_ISA(activate_rows<0, T>)(activation_, saved_[l].get() + at,
                                            dropout_ ? factors_[l].get() + at : nullptr, count,
                                            layer.outputs, y_stride, const_cast<T*>(h(l)) + at);
      x = h(l) + at;
      stride = y_stride;
    }
    LossRows<T> loss = loss_;
    loss.labels = labels_.data() + begin;
    loss.targets = targets_.empty() ? nullptr : targets_.data() + begin * outputs();
    loss.row_weight = data_.row_weights ? row_weights_.data() + begin : nullptr;
    const int64_t z_stride = row_stride<T>(outputs());
    FASTMLP_BEST_ISA(loss_rows<T>)(loss, saved_[last].get() + begin * z_stride, z_stride, count,
                                   outputs(), row_losses_.data() + begin, row_hits_.data() + begin,
                                   dz_[last].get() + begin * z_stride);
    for (int64_t l = last; l > 0; --l) {
      const PanelLayer<T>& layer = layers_[l];
      const int64_t from = row_stride<T>(layer.outputs), to = row_stride<T>(layer.inputs);
      T* dh = dz_[l - 1].get() + begin * to;
      FASTMLP_BEST_ISA(panel_forward<T>)(dz_[l].get() + begin * from, from, count, layer.across(),
                                         layer.outputs, layer.inputs, dh, to);
      FASTMLP_BEST_ISA(activation_gradient_rows<0, T>)(
          activation_, saved_[l - 1].get() + begin * to,
          dropout_ ? factors_[l - 1].get() + begin * to : nullptr, count, layer.inputs, to, dh);
    }
  }

  void draw_dropout(int64_t l, int64_t begin, int64_t end) {
    const int64_t units = layers_[l].outputs, stride = row_stride<T>(units);
    const uint64_t seed =
        static_cast<uint64_t>(option(kSeedHigh)) << 32 | static_cast<uint64_t>(option(kSeedLow));
    const auto place = static_cast<uint32_t>((option(kEpoch) + epoch_) << 8 | l);
    for (int64_t m = begin; m < end; ++m) {
      FASTMLP_BEST_ISA(dropout_row<T>)(seed, static_cast<uint32_t>(m), static_cast<uint32_t>(step_),
                                       place, static_cast<uint32_t>(option(kDropoutThreshold)),
                                       T(1 / (1 - number(kDropout))), units,
                                       factors_[l].get() + m * stride);
    }
  }

  void prepare_update(int64_t number_of_step, double divisor) {
    UpdateNumbers<T>& u = update_;
    const double lr = number(kStepLr);
    const double decay = option(kDecayPerRow) ? number(kDecay) / divisor : number(kDecay);
    const bool apart = optimizer() == Optimizer::kAdamW, biases = option(kDecayBiases) != 0;
    u.weight_decay = apart ? 0 : decay;
    u.bias_decay = apart || !biases ? 0 : decay;
    u.weight_kept = apart ? 1 - lr * decay : 1;
    u.bias_kept = apart && biases ? 1 - lr * decay : 1;
    const double mu = number(kStepMomentum);
    const bool nesterov = option(kStepNesterov), inside = option(kLrInMomentum);
    u.momentum = mu;
    u.v_from_g = inside ? -lr : 1;
    u.w_from_v = (inside ? 1 : -lr) * (nesterov ? mu : 1);
    u.w_from_g = kind_ == UpdateKind::kMomentum && !nesterov ? 0 : -lr;
    if (kind_ != UpdateKind::kAdam) return;
    const double done = number(kStepsDone) + (number_of_step - option(kStartStep)) + 1;
    const double correction1 = 1 - std::pow(number(kBeta1), done);
    const double root2 = std::sqrt(1 - std::pow(number(kBeta2), done));
    const bool hat = option(kEpsilonHat);
    u.one_minus_beta1 = 1 - number(kBeta1);
    u.beta2 = number(kBeta2);
    u.one_minus_beta2 = 1 - number(kBeta2);
    u.step = hat ? lr * root2 / correction1 : lr / correction1;
    u.root = hat ? 1 : 1 / root2;
    u.eps = number(kEps);
  }

  void item_gradient(int64_t i) {
    const Item& item = items_[i];
    const PanelLayer<T>& layer = layers_[item.layer];
    const int64_t stride = row_stride<T>(layer.inputs), dz_stride = row_stride<T>(layer.outputs);
    const T* x = item.layer == 0 ? x_.get() : h(item.layer - 1);
    const bool clips = options_[kClipNorm] > 0;
    T* gradients = gradients_[item.layer].get() + item.panel.first * (layer.inputs + 1);
    if (!decayed_.empty()) {
      const int64_t width = layer.width(item.panel);
      const int64_t end = option(kDecayBiases) ? item.end : std::min(item.end, layer.inputs);
      decayed_[i] = FASTMLP_BEST_ISA(panel_squares<T>)(layer.at(item.panel).w + item.begin * width,
                                                       (end - item.begin) * width);
    }
    if (item.layer == 0 && data_.sparse()) {
      squares_[i] = FASTMLP_BEST_ISA(sparse_gradient<T>)(
          kind_, update_, item.panel.vectors, sparse_.columns(), dz_[0].get() + item.panel.first,
          dz_stride, count_, item.begin, item.end, layer.inputs, layer.at(item.panel),
          clips ? gradients : nullptr);
      return;  // no layer before it reads its weights transposed
    }
    squares_[i] = FASTMLP_BEST_ISA(panel_gradient<T>)(
        kind_, update_, item.panel.vectors, x, stride, dz_[item.layer].get() + item.panel.first,
        dz_stride, count_, item.begin, item.end, layer.inputs, layer.at(item.panel),
        clips ? gradients : nullptr);
    if (!clips) layer.transpose(item.panel, item.begin, item.end);
  }

  // As torch.nn.utils.clip_grad_norm_ has it.
  void clip_and_update() {
    double squares = 0;
    for (double part : squares_) squares += part;
    clip_factor_ = std::min(1.0, number(kClipNorm) / (std::sqrt(squares) + 1e-6));
    team_.run(items_.size(), [this](int64_t i) {
      const Item& item = items_[i];
      const PanelLayer<T>& layer = layers_[item.layer];
      FASTMLP_BEST_ISA(panel_update<T>)(
          kind_, update_, item.panel.vectors, clip_factor_,
          gradients_[item.layer].get() + item.panel.first * (layer.inputs + 1), item.begin,
          item.end, layer.inputs, layer.at(item.panel));
      layer.transpose(item.panel, item.begin, item.end);
    });
  }

  const StepNetwork<T>& network_;
  const double* options_;
  const RowData& data_;
  RowReader<T> reader_;
  SparseBatch<T> sparse_;
  const Parallel& team_;
  Activation activation_;
  UpdateKind kind_;
  bool dropout_;
  int64_t batch_;  // rows of a full one
  std::vector<PanelLayer<T>> layers_;
  // Of each row: inputs; each layer's outputs as its derivative needs them, as the next layer reads
  // them (where that differs), their gradients before the activation, and dropout's factors.
  Buffer<T> x_;
  std::vector<Buffer<T>> saved_, h_, dz_, factors_, gradients_;
  std::vector<double> row_losses_;
  std::vector<int64_t> row_hits_;
  std::vector<T> row_weights_, targets_, class_weight_;
  std::vector<int64_t> labels_;
  std::vector<Item> items_;
  std::vector<double> squares_;  // of each item's gradients, where these are clipped
  std::vector<double> decayed_;  // squares of each item's weights, where the loss has the decay
  LossRows<T> loss_;
  UpdateNumbers<T> update_;
  // The present step's.
  const int64_t* rows_ = nullptr;
  int64_t count_ = 0, ahead_ = 0, step_ = 0, epoch_ = 0, chunk_ = 0;
  T clip_factor_ = 1;
};

}  // namespace fastmlp
