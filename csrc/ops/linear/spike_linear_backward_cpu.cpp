// spike_linear_backward: the forward's integer sums once more. Each meets the gradient of its scale while it is in
// registers; their float sums give the gradient of the threshold. A task owns a slice of the outputs and walks along
// the rows, so nothing but the thresholds' gradients is shared between tasks: slices are added in order at the end.
#include "spike_linear_tiles_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kMostSlices = 256;

struct Slices {
  int64_t panels, count;
  explicit Slices(int64_t outputs)
      : panels(max<int64_t>(1, ceil_div(ceil_div(outputs, kColumns), kMostSlices))),
        count(ceil_div(outputs, panels * kColumns)) {}
};

int64_t shares_at(const Layer& layer, const Tensor& weight) { return round_up(counts_bytes(layer, weight), 64); }

int64_t plan(const Tensor& counts, const Tensor& v_threshold, const Tensor& weight, const Tensor& scales,
             const Tensor& bias, const Tensor& grad_y, int64_t group_size, const char* out_dtype) {
  const Layer layer = layer_of(counts, v_threshold, weight, scales, bias, group_size);
  check_out_dtype(out_dtype);
  gradient_rows(grad_y, counts, layer);
  const int64_t shares = Slices(layer.outputs).count * layer.counts.count;
  return shares_at(layer, weight) + shares * static_cast<int64_t>(sizeof(float));
}

// What a task keeps of one block of rows: [rows][kColumns] each.
struct Scratch {
  alignas(64) float sums[kMostRows * kColumns], weights[kMostRows * kColumns];
  alignas(64) float scale_gradient[kPanelGroups * kColumns], bias_gradient[kColumns];
};

struct Call {
  const Layer layer;
  const Counts counts;
  const Rows gradients;
  const Tensor &v_threshold, &weight, &scales, &grad_y, &grad_scales, &grad_bias;

  // Calls f(row of the block, lane offset, gradient of that row's kLanes outputs), zeros past the last output.
  template <class F> void each_gradient(const Block& block, int64_t column, const F& f) const {
    with_float(grad_y.dtype, [&](auto* type) {
      const auto* from = static_cast<const typename ElementOf<decltype(type)>::type*>(grad_y.data) + column;
      for (int64_t row = 0; row < block.rows; ++row)
        for (int64_t h = 0; h < kColumns; h += kLanes) {
          const int64_t left = layer.outputs - column - h;
          f(row, h, left > 0 ? load(from + (block.first + row) * gradients.stride + h, left) : zero());
        }
    });
  }

  // A task has a slice of the outputs, panel after panel of kColumns, and walks along blocks of up to kMostRows rows.
  // On its stack: the panel for L1; weights [rows][kColumns], gradient times threshold, and sums [rows][kColumns] for
  // L2; scale_gradient [groups of the panel][kColumns], added to grad_scales after each kDepth codes; bias_gradient.
  // Its share [rows] of the thresholds' gradient is in the workspace; parallel_for ends before the shares are added.
  template <class Code>
  void run_block(Panel<Code>& panel, Scratch& s, int64_t column, int64_t first_row, int64_t rows, float* share) const {
    const Block block = {first_row, rows, s.sums, s.weights, s.scale_gradient};
    const auto* thresholds = static_cast<const float*>(v_threshold.data) + first_row * layer.thresholds.stride;
    each_gradient(block, column, [&](int64_t row, int64_t h, vf gradient) {
      store(s.weights + row * kColumns + h, gradient * set(thresholds[row * layer.thresholds.stride]));
      store(s.bias_gradient + h, load(s.bias_gradient + h) + gradient);
    });
    clear(s.sums, rows * kColumns);
    for (int64_t first = 0; first < layer.width; first += kDepth) {
      const int64_t depth = min(kDepth, layer.width - first);
      panel.pack(weight, scales, layer, column, first, depth);
      clear(s.scale_gradient, kPanelGroups * kColumns);
      add_panel(panel, counts, block, first, depth, layer.group);
      auto* out = static_cast<float*>(grad_scales.data) + column * layer.groups + first / layer.group;
      for (int64_t n = 0; n < min(kColumns, layer.outputs - column); ++n)
        for (int64_t g = 0; g < depth / layer.group; ++g)
          out[n * layer.groups + g] += s.scale_gradient[g * kColumns + n];
    }
    vf total = zero();
    each_gradient(block, column, [&](int64_t row, int64_t h, vf gradient) {
      total = (h ? total : zero()) + gradient * load(s.sums + row * kColumns + h);
      if (h + kLanes == kColumns) share[first_row + row] += sum(total);
    });
  }

  template <class Code> void run(int64_t column, const Blocks& blocks, float* share) const {
    Panel<Code> panel;
    Scratch s;
    clear(s.bias_gradient, kColumns);
    auto* out = static_cast<float*>(grad_scales.data) + column * layer.groups;
    for (int64_t i = 0; i < min(kColumns, layer.outputs - column) * layer.groups; ++i) out[i] = 0;
    for (int64_t first = 0; first < layer.counts.count; first += blocks.rows)
      run_block(panel, s, column, first, min(blocks.rows, layer.counts.count - first), share);
    if (grad_bias.shape[0] == 0) return;
    with_float(grad_bias.dtype, [&](auto* type) {
      using T = typename ElementOf<decltype(type)>::type;
      for (int64_t n = 0; n < min(kColumns, layer.outputs - column); ++n)
        static_cast<T*>(grad_bias.data)[column + n] = from_float<T>(s.bias_gradient[n]);
    });
  }
};

template <class T> void fill_zero(const Tensor& out) {
  for (int64_t i = 0; i < out.shape[0]; ++i) static_cast<T*>(out.data)[i] = T{};
}

void launch(const Tensor& counts, const Tensor& v_threshold, const Tensor& weight, const Tensor& scales,
            const Tensor& bias, const Tensor& grad_y, int64_t group_size, const char*, const Tensor& grad_v_threshold,
            const Tensor& grad_scales, const Tensor& grad_bias, const Launch& launch) {
  const Layer layer = layer_of(counts, v_threshold, weight, scales, bias, group_size);
  const int64_t rows = layer.counts.count;
  auto* thresholds = static_cast<float*>(grad_v_threshold.data);
  if (!defined(grad_y)) {
    for (int64_t i = 0; i < rows; ++i) thresholds[i] = 0;
    for (int64_t i = 0; i < layer.outputs * layer.groups; ++i) static_cast<float*>(grad_scales.data)[i] = 0;
    with_float(grad_bias.dtype, [&](auto* type) { fill_zero<typename ElementOf<decltype(type)>::type>(grad_bias); });
    return;
  }
  const Call call = {layer,
                     pack_counts(counts, weight, layer, launch.workspace, launch.num_threads),
                     gradient_rows(grad_y, counts, layer),
                     v_threshold,
                     weight,
                     scales,
                     grad_y,
                     grad_scales,
                     grad_bias};
  const Blocks blocks(rows);
  const Slices slices(layer.outputs);
  auto* shares = reinterpret_cast<float*>(launch.workspace + shares_at(layer, weight));
  parallel_for(slices.count, launch.num_threads, [&](int64_t slice, int) {
    float* share = shares + slice * rows;
    for (int64_t row = 0; row < rows; ++row) share[row] = 0;
    const int64_t begin = slice * slices.panels * kColumns, end = begin + slices.panels * kColumns;
    for (int64_t column = begin; column < min(end, layer.outputs); column += kColumns)
      if (is_bytes(weight))
        call.run<int8_t>(column, blocks, share);
      else
        call.run<int16_t>(column, blocks, share);
  });
  for (int64_t row = 0; row < rows; ++row) {
    float sum = 0;
    for (int64_t slice = 0; slice < slices.count; ++slice) sum += shares[slice * rows + row];
    thresholds[row] = sum;
  }
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_linear_backward, 1, plan, launch)
