// spike_linear: integer sums of counts times codes, group by group. A task packs one panel of outputs after the other
// along their codes and multiplies a block of rows by it: one row reads weights as fast as memory gives them, many rows
// keep the multipliers busy from the first-level cache.
#include "spike_linear_tiles_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

int64_t plan(const Tensor& counts, const Tensor& v_threshold, const Tensor& weight, const Tensor& scales,
             const Tensor& bias, int64_t group_size, const char* out_dtype) {
  const Layer layer = layer_of(counts, v_threshold, weight, scales, bias, group_size);
  check_out_dtype(out_dtype);
  return counts_bytes(layer, weight);
}

// The bias of the panel's outputs; zeros past the last, and where there is none.
void read_bias(const Tensor& bias, int64_t column, float* out) {
  clear(out, kColumns);
  if (!defined(bias)) return;
  with_float(bias.dtype, [&](auto* type) {
    const auto* from = static_cast<const typename ElementOf<decltype(type)>::type*>(bias.data);
    for (int64_t n = 0; n < min(kColumns, bias.shape[0] - column); ++n) out[n] = to_float(from[column + n]);
  });
}

template <class T> void write_rows(const Block& block, const Layer& layer, const Tensor& v_threshold, const float* bias,
                                   int64_t column, const Tensor& y) {
  const auto* thresholds = static_cast<const float*>(v_threshold.data);
  for (int64_t row = 0; row < block.rows; ++row) {
    const vf threshold = set(thresholds[(block.first + row) * layer.thresholds.stride]);
    T* out = static_cast<T*>(y.data) + (block.first + row) * layer.outputs + column;
    for (int64_t h = 0; h < kColumns && column + h < layer.outputs; h += kLanes)
      store(out + h, threshold * load(block.sums + row * kColumns + h) + load(bias + h), layer.outputs - column - h);
  }
}

struct Call {
  const Layer layer;
  const Counts counts;
  const Tensor &v_threshold, &weight, &scales, &bias, &y;

  // A task has a block of up to kMostRows rows by some panels of kColumns outputs, one after the other. On its stack:
  // the panel, units [kDepth / kCodes][kColumns] for L1, and sums [rows][kColumns] over all depths for L2. For each
  // kDepth codes: pack the panel, then every tile of rows passes by it. Tasks write different outputs; the counts as
  // bytes are in the workspace before the tasks start.
  template <class Code> void run(int64_t column, int64_t first_row, int64_t rows) const {
    Panel<Code> panel;
    alignas(64) float sums[kMostRows * kColumns], added[kColumns];
    const Block block = {first_row, rows, sums, nullptr, nullptr};
    clear(sums, rows * kColumns);
    for (int64_t first = 0; first < layer.width; first += kDepth) {
      const int64_t depth = min(kDepth, layer.width - first);
      panel.pack(weight, scales, layer, column, first, depth);
      add_panel(panel, counts, block, first, depth, layer.group);
    }
    read_bias(bias, column, added);
    with_float(y.dtype, [&](auto* type) {
      write_rows<typename ElementOf<decltype(type)>::type>(block, layer, v_threshold, added, column, y);
    });
  }
};

void launch(const Tensor& counts, const Tensor& v_threshold, const Tensor& weight, const Tensor& scales,
            const Tensor& bias, int64_t group_size, const char*, const Tensor& y, const Launch& launch) {
  const Layer layer = layer_of(counts, v_threshold, weight, scales, bias, group_size);
  const Counts packed = pack_counts(counts, weight, layer, launch.workspace, launch.num_threads);
  const Call call = {layer, packed, v_threshold, weight, scales, bias, y};
  const Blocks blocks(layer.counts.count);
  const Tasks panels(layer.outputs, kColumns, 4);  // neighbours in one: what a panel asks for early, its thread reads
  parallel_for(blocks.count * panels.count, launch.num_threads, [&](int64_t task, int) {
    const int64_t first_row = task % blocks.count * blocks.rows;
    const int64_t rows = min(blocks.rows, layer.counts.count - first_row);
    const int64_t place = task / blocks.count;
    for (int64_t column = panels.begin(place); column < panels.end(place); column += kColumns)
      if (is_bytes(weight))
        call.run<int8_t>(column, first_row, rows);
      else
        call.run<int16_t>(column, first_row, rows);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_linear, 1, plan, launch)
