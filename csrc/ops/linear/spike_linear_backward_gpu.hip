// spike_linear_backward on a GPU: the forward's group sums once more, in the order that each gradient adds them up. For
// the thresholds a block walks along the groups of one tile and sums over its outputs; for the scales it walks along
// the rows of one group. Where several blocks add to a threshold's gradient, their shares are added in order at the
// end.
#include "spike_linear_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

int64_t plan(const Tensor& counts, const Tensor& v_threshold, const Tensor& weight, const Tensor& scales,
             const Tensor& bias, const Tensor& grad_y, int64_t group_size, const char* out_dtype) {
  const Layer layer = layer_of(counts, v_threshold, weight, scales, bias, group_size);
  check_out_dtype(out_dtype);
  gradient_rows(grad_y, counts, layer);
  return ceil_div(layer.outputs, kTile) * layer.counts.count * static_cast<int64_t>(sizeof(float));
}

struct Gradient {
  Tensor y;
  int64_t stride, rows, outputs;

  SBHAL_INLINE float at(int64_t row, int64_t n) const {
    return row < rows && n < outputs ? float_at(y, row * stride + n) : 0.0f;
  }
};

// The sum of `square` along rows (step 1) or along columns (step kSquarePitch), by four neighbouring threads each.
constexpr int kSharers = kThreads / kTile;
SBHAL_INLINE float sum_line(const float* square, int line_step, int step) {
  const int line = static_cast<int>(threadIdx.x) / kSharers, share = static_cast<int>(threadIdx.x) % kSharers;
  float sum = 0;
#pragma unroll 4
  for (int i = 0; i < kTile / kSharers; ++i) sum += square[line * line_step + (share * (kTile / kSharers) + i) * step];
  return wave_sum<kSharers>(sum);
}
SBHAL_INLINE int own_line() {  // -1 for all but one of those that share it
  return threadIdx.x % kSharers == 0 ? static_cast<int>(threadIdx.x) / kSharers : -1;
}

// A block: 64 rows by 64 outputs, along all groups, as the forward has them: totals in registers, operands as Tile
// holds them. Then square [64 rows][64 outputs] of gradient times total in shared memory, a barrier that shows it, and
// four threads a row add it up. shares [blocks of outputs][rows] is in the workspace.
template <class Code> __global__ void __launch_bounds__(kThreads)
    threshold_shares(Problem p, Gradient gradient, float* shares, int64_t high) {
  SBHAL_SPIKE_OPERANDS(operands);
  SBHAL_SHARED(float, square, kSquare);
  const int64_t across = static_cast<int64_t>(blockIdx.x) / high;
  const Tile<Code> tile = {p, operands, static_cast<int64_t>(blockIdx.x) % high * kTile, across * kTile};
  Products totals[kTiles];
#pragma unroll
  for (Products& t : totals) t.zero();
  tile.each_group(0, static_cast<int>(p.layer.groups),
                  [&](int, const typename Tile<Code>::Sums& sums) { add_scaled<Code>(sums, operands.scales, totals); });
  each_element<Code>(totals, [&](int r, int n, float total) {
    square[r * kSquarePitch + n] = gradient.at(tile.row + r, tile.column + n) * total;
  });
  __syncthreads();
  const float sum = sum_line(square, kSquarePitch, 1);
  const int line = own_line();
  if (line >= 0 && tile.row + line < gradient.rows) shares[across * gradient.rows + tile.row + line] = sum;
}

// One thread a row adds up its shares in the order of the outputs. Nothing is shared: no barrier.
__global__ void __launch_bounds__(kThreads) add_shares(const float* shares, int64_t rows, int64_t across, float* out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  float sum = 0;
  for (int64_t i = 0; i < across; ++i) sum += shares[i * rows + row];
  out[row] = sum;
}

// A block: one group of 64 outputs, along all rows, 64 at a time. Registers: the group's sums of the rows at hand,
// times gradient and threshold, added to totals [64][64] of a row's place among its 64 and the output. Then square, as
// above: a barrier shows it, and four threads an output add up its column. Other barriers are Tile's.
template <class Code> __global__ void __launch_bounds__(kThreads)
    scale_gradients(Problem p, Gradient gradient, Tensor v_threshold, float* out) {
  SBHAL_SPIKE_OPERANDS(operands);
  SBHAL_SHARED(float, square, kSquare);
  const Layer& layer = p.layer;
  const int group = static_cast<int>(blockIdx.x % layer.groups);
  const int64_t column = static_cast<int64_t>(blockIdx.x) / layer.groups * kTile;
  Products totals[kTiles];
#pragma unroll
  for (Products& t : totals) t.zero();
  for (int64_t row = 0; row < gradient.rows; row += kTile) {
    const Tile<Code> tile = {p, operands, row, column};
    tile.each_group(group, group + 1, [&](int, typename Tile<Code>::Sums sums) {
      each_element<Code>(sums.tile, [&](int r, int n, float& sum) {
        const bool there = row + r < gradient.rows;  // a threshold may be NaN: rows that are none must not be read
        sum *= there ? gradient.at(row + r, column + n) * threshold_at(v_threshold, layer, row + r) : 0.0f;
      });
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int e = 0; e < kElements; ++e) totals[j].c[e] += sums.tile[j].c[e];
    });
  }
  each_element<Code>(totals, [&](int r, int n, float total) { square[r * kSquarePitch + n] = total; });
  __syncthreads();
  const float sum = sum_line(square, 1, kSquarePitch);
  const int line = own_line();
  if (line >= 0 && column + line < layer.outputs) out[(column + line) * layer.groups + group] = sum;
}

// A block: 64 outputs, neighbouring threads neighbouring ones, the rows in four interleaved parts. parts [4][64] in
// shared memory; one barrier shows it to the first part's threads, which add up the others in order.
__global__ void __launch_bounds__(kThreads) bias_gradients(Gradient gradient, Tensor out) {
  SBHAL_SHARED(float, parts, kThreads);
  const int column = static_cast<int>(threadIdx.x) % kTile, part = static_cast<int>(threadIdx.x) / kTile;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kTile + column;
  float sum = 0;
  for (int64_t row = part; row < gradient.rows; row += kSharers) sum += gradient.at(row, n);
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (part != 0 || n >= gradient.outputs) return;
  for (int i = 1; i < kSharers; ++i) sum += parts[i * kTile + column];
  put(out, n, sum);
}

// One thread an element, for where there is no gradient.
__global__ void __launch_bounds__(kThreads) clear(Tensor out, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) put(out, i, 0.0f);
}

template <class Code> void differentiate(const Problem& p, const Gradient& gradient, const Tensor& v_threshold,
                                         const Tensor& grad_v_threshold, const Tensor& grad_scales,
                                         const Launch& launch) {
  const int64_t high = ceil_div(gradient.rows, kTile), across = ceil_div(gradient.outputs, kTile);
  auto* shares = reinterpret_cast<float*>(launch.workspace);
  launch_kernel("spike_linear_backward threshold", threshold_shares<Code>, high * across, kThreads, launch, p, gradient,
                shares, high);
  launch_kernel("spike_linear_backward shares", add_shares, ceil_div(gradient.rows, kThreads), kThreads, launch, shares,
                gradient.rows, across, static_cast<float*>(grad_v_threshold.data));
  launch_kernel("spike_linear_backward scales", scale_gradients<Code>, across * p.layer.groups, kThreads, launch, p,
                gradient, v_threshold, static_cast<float*>(grad_scales.data));
}

void launch(const Tensor& counts, const Tensor& v_threshold, const Tensor& weight, const Tensor& scales,
            const Tensor& bias, const Tensor& grad_y, int64_t group_size, const char*, const Tensor& grad_v_threshold,
            const Tensor& grad_scales, const Tensor& grad_bias, const Launch& launch) {
  const Layer layer = layer_of(counts, v_threshold, weight, scales, bias, group_size);
  const int64_t biases = defined(bias) ? layer.outputs : 0;
  if (!defined(grad_y)) {
    const auto fill = [&](const Tensor& out, int64_t count) {
      launch_kernel("spike_linear_backward", clear, ceil_div(count, kThreads), kThreads, launch, out, count);
    };
    fill(grad_v_threshold, layer.counts.count);
    fill(grad_scales, layer.outputs * layer.groups);
    fill(grad_bias, biases);
    return;
  }
  const Gradient gradient = {grad_y, gradient_rows(grad_y, counts, layer).stride, layer.counts.count, layer.outputs};
  const auto run = is_bytes(weight) ? differentiate<int8_t> : differentiate<int16_t>;
  run(problem_of(counts, weight, scales, layer), gradient, v_threshold, grad_v_threshold, grad_scales, launch);
  launch_kernel("spike_linear_backward bias", bias_gradients, ceil_div(biases, kTile), kThreads, launch, gradient,
                grad_bias);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_linear_backward, 1, plan, launch)
