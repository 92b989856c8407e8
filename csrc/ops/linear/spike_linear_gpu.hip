// spike_linear on a GPU: tiles on the matrix units, or for a few rows, which weights in memory bound, dot products that
// read each weight once. Both sum a group exactly and groups in their order, so they give a row the same bits.
#include "spike_linear_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kFewRows = 8;  // that dot products serve
constexpr int kRowsAtOnce = 4;
constexpr int kCodes = 16;  // that a thread multiplies at once

int64_t plan(const Tensor& counts, const Tensor& v_threshold, const Tensor& weight, const Tensor& scales,
             const Tensor& bias, int64_t group_size, const char* out_dtype) {
  layer_of(counts, v_threshold, weight, scales, bias, group_size);
  check_out_dtype(out_dtype);
  return 0;
}

struct Result {
  Tensor v_threshold, bias, y;

  SBHAL_INLINE void put_at(const Layer& layer, int64_t row, int64_t n, float total) const {
    const float added = defined(bias) ? float_at(bias, n) : 0.0f;
    put(y, row * layer.outputs + n, threshold_at(v_threshold, layer, row) * total + added);
  }
};

// A block: 64 rows by 64 outputs, along all groups. Shared memory and its barriers are Tile's; a wavefront adds the
// sums of each group, times their scales, to the totals of the same elements in registers, and writes those from there.
// Blocks of neighbouring numbers have the same outputs, so that the weights they share are in cache.
template <class Code> __global__ void __launch_bounds__(kThreads)
    multiply_tiles(Problem p, Result result, int64_t high) {
  SBHAL_SPIKE_OPERANDS(operands);
  const Tile<Code> tile = {p, operands, static_cast<int64_t>(blockIdx.x) % high * kTile,
                           static_cast<int64_t>(blockIdx.x) / high * kTile};
  Products totals[kTiles];
#pragma unroll
  for (Products& t : totals) t.zero();
  tile.each_group(0, static_cast<int>(p.layer.groups),
                  [&](int, const typename Tile<Code>::Sums& sums) { add_scaled<Code>(sums, operands.scales, totals); });
  each_element<Code>(totals, [&](int r, int n, float total) {
    if (tile.row + r < p.layer.counts.count && tile.column + n < p.layer.outputs)
      result.put_at(p.layer, tile.row + r, tile.column + n, total);
  });
}

// ---- few rows

template <class Code> struct SumOf {
  using type = int32_t;
};
template <> struct SumOf<int16_t> {
  using type = int64_t;
};

SBHAL_INLINE int32_t from_lane(int32_t v, int mask) { return shuffle_xor(v, mask); }
SBHAL_INLINE int64_t from_lane(int64_t v, int mask) {
  const auto low = shuffle_xor(static_cast<uint32_t>(v), mask),
             high = shuffle_xor(static_cast<uint32_t>(v >> 32), mask);
  return static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | low);
}

// A team of lanes for each output, as many as a group has packs of kCodes: two, four or eight; a block has 256 / team
// outputs and `rows` rows. A lane holds its 16 codes of a group and those of the next one, and of every row a sum and a
// total; counts come from cache. Sums meet by shuffles at each group's end, for which lanes past the last output go on
// with that one's codes. Nothing is shared: no barrier.
template <class Code, int rows> __global__ void __launch_bounds__(kThreads)
    multiply_rows(Problem p, Result result, int team, int64_t blocks) {
  using Sum = typename SumOf<Code>::type;
  const Layer& layer = p.layer;
  const int member = static_cast<int>(threadIdx.x) % team;
  const int64_t n = static_cast<int64_t>(blockIdx.x) % blocks * (kThreads / team) + threadIdx.x / team;
  const int64_t row = static_cast<int64_t>(blockIdx.x) / blocks * rows, output = min(n, layer.outputs - 1);
  const Code* codes = static_cast<const Code*>(p.weight.data) + output * p.weight.stride[0] + member * kCodes;
  const float* scale = static_cast<const float*>(p.scales.data) + output * p.scales.stride[0];
  const int16_t* counts[rows];
#pragma unroll
  for (int r = 0; r < rows; ++r)
    counts[r] = static_cast<const int16_t*>(p.counts.data) +
                min(row + r, layer.counts.count - 1) * layer.counts.stride + member * kCodes;

  constexpr int kPack = 16 / sizeof(Code);
  Pack<Code, kPack> code[kCodes / kPack], next[kCodes / kPack];
  const auto load = [&](int64_t g) {
#pragma unroll
    for (int i = 0; i < kCodes; i += kPack)
      next[i / kPack] = load_codes<kPack>(codes + g * layer.group + i, p.weight_in_packs);
  };
  float total[rows] = {};
  if (layer.groups > 0) load(0);
  for (int64_t g = 0; g < layer.groups; ++g) {
    Sum sum[rows] = {};
#pragma unroll
    for (int i = 0; i < kCodes / kPack; ++i) code[i] = next[i];
    if (g + 1 < layer.groups) load(g + 1);
#pragma unroll
    for (int r = 0; r < rows; ++r)
#pragma unroll
      for (int i = 0; i < kCodes; i += kTogether) {
        const auto count = load_codes<kTogether>(counts[r] + g * layer.group + i, p.counts_in_packs);
#pragma unroll
        for (int e = 0; e < kTogether; ++e)
          sum[r] += static_cast<Sum>(count.at[e]) * code[(i + e) / kPack].at[(i + e) % kPack];
      }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      for (int mask = team / 2; mask > 0; mask /= 2) sum[r] += from_lane(sum[r], mask);
      total[r] += scale[g] * static_cast<float>(sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < rows; ++r)
    if (member == 0 && n < layer.outputs && row + r < layer.counts.count) result.put_at(layer, row + r, n, total[r]);
}

template <class Code> void multiply(const Problem& p, const Result& result, const Launch& launch) {
  const int64_t rows = p.layer.counts.count;
  if (rows > kFewRows) {
    const int64_t high = ceil_div(rows, kTile);
    launch_kernel("spike_linear", multiply_tiles<Code>, high * ceil_div(p.layer.outputs, kTile), kThreads, launch, p,
                  result, high);
    return;
  }
  const int team = static_cast<int>(p.layer.group) / kCodes;
  const int64_t blocks = ceil_div(p.layer.outputs, kThreads / team);
  const auto kernel = rows > 1 ? multiply_rows<Code, kRowsAtOnce> : multiply_rows<Code, 1>;
  launch_kernel("spike_linear", kernel, blocks * (rows > 1 ? ceil_div(rows, kRowsAtOnce) : rows), kThreads, launch, p,
                result, team, blocks);
}

void launch(const Tensor& counts, const Tensor& v_threshold, const Tensor& weight, const Tensor& scales,
            const Tensor& bias, int64_t group_size, const char*, const Tensor& y, const Launch& launch) {
  const Layer layer = layer_of(counts, v_threshold, weight, scales, bias, group_size);
  const Problem p = problem_of(counts, weight, scales, layer);
  const auto run = is_bytes(weight) ? multiply<int8_t> : multiply<int16_t>;
  run(p, {v_threshold, bias, y}, launch);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(spike_linear, 1, plan, launch)
