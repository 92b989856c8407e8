// attention: blocked online softmax on matrix units. A block of threads takes 64 stacked rows of one key/value head and
// walks along the keys that any of them sees; each wavefront owns whole tiles of rows with their maxima, sums and
// output in registers, so that wavefronts meet only to load keys and values. The probabilities pass through shared
// memory, in the inputs' type, to become an operand.
//
// Where there are too few rows for the device, as in decoding, the keys are split over blocks, and a second kernel
// merges what each found. Outputs wider than the registers are cut into tiles of columns over blocks.
#include "attention_blocks_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kRows = 64;                  // of a block
constexpr int64_t kFill = 256;             // blocks that should run at once, if there is work for them
constexpr int64_t kSplitKeys = 4 * kSpan;  // fewer are not worth a block of their own
constexpr int kWeightPitch = kSpan + kPad;
template <class T> constexpr int kWidest = sizeof(T) == 4 ? 128 : 256;  // columns of output in registers

// How blocks are numbered: blocks of rows from the last on, which sees most keys, then heads, tiles of columns, splits.
struct Grid {
  int64_t row_blocks;
  int columns;  // of a tile
  uint32_t heads, tiles, splits;
  SBHAL_BOTH int64_t tasks() const { return row_blocks * heads; }
};

Grid grid_of(const Shape& s, DType dtype, int64_t window, int64_t sinks) {
  Grid grid = {most_blocks<Axis::rows>(s, kRows), 64, static_cast<uint32_t>(s.heads), 1, 1};
  if (max(s.depth, s.width) > 64) grid.columns = s.width <= 128 || dtype == DType::f32 ? 128 : kWidest<bf16>;
  grid.tiles = static_cast<uint32_t>(max<int64_t>(1, ceil_div(s.width, grid.columns)));
  const int64_t blocks = grid.tasks() * grid.tiles, sunk = min(sinks, s.keys);
  const int64_t seen = window > 0 ? min(s.keys, min(window, s.keys) + sunk + kRows) : s.keys;
  if (blocks > 0) grid.splits = static_cast<uint32_t>(max<int64_t>(1, min(kFill / blocks, seen / kSplitKeys)));
  return grid;
}

// What the splits leave to be merged, of each task and split.
struct Partial {
  float *o, *stats;  // [kRows, width], and each row's largest score and sum of weights
};

int64_t partial_rows(const Grid& grid) { return grid.splits > 1 ? grid.tasks() * grid.splits * kRows : 0; }

int64_t plan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
             const Tensor& kv_lengths, bool causal, int64_t window, double, int64_t sinks) {
  const Shape s = shape_of(q, k, v, cu_q, cu_k, kv_lengths, causal, window, sinks);
  check_sizes(s);
  return partial_rows(grid_of(s, q.dtype, window, sinks)) * (s.width + 2) * static_cast<int64_t>(sizeof(float));
}

// ---- softmax

// The online softmax of a tile of rows; each lane keeps its own part of the sums until the end.
template <class T> struct Softmax {
  using Unit = typename MmaTile<T>::Unit;
  float largest[Unit::kHeldRows], sum[Unit::kHeldRows];

  SBHAL_INLINE void reset() {
#pragma unroll
    for (int h = 0; h < Unit::kHeldRows; ++h) largest[h] = -kInfinity, sum[h] = 0;
  }

  // Scores become weights 2^(score - largest), `factor` what everything summed before is worth now.
  template <int count, class Sees> SBHAL_INLINE void weigh(MmaTile<T> (&scores)[count], float scale, bool whole,
                                                           const Sees& sees, float (&factor)[Unit::kHeldRows],
                                                           T* weights) {
    float reference[Unit::kHeldRows];
#pragma unroll
    for (int h = 0; h < Unit::kHeldRows; ++h) reference[h] = largest[h];
#pragma unroll
    for (int n = 0; n < count; ++n)
#pragma unroll
      for (int e = 0; e < Unit::kElements; ++e) {
        float& score = scores[n].c[e];
        score *= scale;
        if (!whole && !sees(Unit::row(e), n * kTile + Unit::column(e))) score = -kInfinity;
        reference[Unit::held(e)] = fmaxf(reference[Unit::held(e)], score);
      }
#pragma unroll
    for (int h = 0; h < Unit::kHeldRows; ++h) {
      const float before = largest[h];
      largest[h] = wave_max<Unit::kAcross>(reference[h]);
      reference[h] = largest[h] == -kInfinity ? 0.0f : largest[h];
      factor[h] = exp2f(before - reference[h]);
      sum[h] *= factor[h];
    }
#pragma unroll
    for (int n = 0; n < count; ++n)
#pragma unroll
      for (int e = 0; e < Unit::kElements; ++e) {
        const float weight = exp2f(scores[n].c[e] - reference[Unit::held(e)]);
        sum[Unit::held(e)] += weight;
        weights[Unit::row(e) * kWeightPitch + n * kTile + Unit::column(e)] = from_float<T>(weight);
      }
  }
};

SBHAL_INLINE float lse_of(float largest, float sum) { return sum == 0 ? -kInfinity : largest * kLn2 + logf(sum); }

// ---- kernels

// A block: 64 stacked rows of one key/value head, `columns` columns of their output, one split of the keys.
//
//   registers  a wavefront owns kTiles tiles of 16 rows: scores [16][32], maxima and sums of rows, out [16][columns]
//   q          [64][kSlice] queries; at the end the outputs, so that rows leave whole
//   kv         [32][kSlice] the span's keys, then its values
//   weights    [64][32] in T: each wavefront writes and reads the rows of its own tiles
//   position   [64] the key that a row's query stands at; special: a flag of each wavefront, that v is not finite
//
// For each span of 32 keys: by slices of the depth (barrier, stage k, and q if it does not lie there yet, barrier, add
// scores); softmax; by slices of the columns (barrier, stage v, barrier, out += weights v). The first barrier of a pair
// waits for the readers of q, kv and special, the second shows what was staged, and the weights to their wavefront.
template <class T, int columns> __global__ void __launch_bounds__(kThreads)
    attend(Problem p, Grid grid, View o, float* lse, Partial partial) {
  constexpr int kSlice = columns < kWidestSlice<T> ? columns : kWidestSlice<T>, kPitch = kSlice + kPad;
  constexpr int kTiles = kRows / kTile * SBHAL_WAVE / kThreads;     // of rows of a wavefront
  constexpr int kAtOnce = sizeof(T) == 4 || columns > 128 ? 2 : 4;  // packs, as registers allow
  using Unit = typename MmaTile<T>::Unit;
  SBHAL_SHARED(T, q, kRows * kPitch);
  SBHAL_SHARED(T, kv, kSpan * kPitch);
  SBHAL_SHARED(T, weights, kRows * kWeightPitch);
  SBHAL_SHARED(Index, position, kRows);
  SBHAL_SHARED(int, special, kThreads / SBHAL_WAVE);

  const Shape& s = p.shape;
  uint32_t number = blockIdx.x;
  const uint32_t split = number % grid.splits;
  number /= grid.splits;
  const int first_column = static_cast<int>(number % grid.tiles) * columns;
  number /= grid.tiles;
  const uint32_t head = number % grid.heads;
  const Index row_block = static_cast<Index>(grid.row_blocks - 1 - number / grid.heads);
  const Block block = block_at<Axis::rows>(p, row_block, kRows);
  const Mask& mask = block.mask;
  const int rows = block.end - block.begin;
  if (rows <= 0) return;

  const Visible any = mask.by_any({block.begin, block.end}), all = mask.by_all({block.begin, block.end});
  const KeySpans spans(any, mask.sequence.first_key);
  const Index last_key = mask.sequence.first_key + mask.sequence.keys;
  const auto bound = [&](uint32_t n) { return static_cast<Index>(int64_t{spans.count()} * n / grid.splits); };
  const Index begin = bound(split), end = bound(split + 1);
  const int depth = p.q.columns, width = p.v.columns, slices = (depth + kSlice - 1) / kSlice;
  if (threadIdx.x < kRows) position[threadIdx.x] = mask.position(block.begin + static_cast<Index>(threadIdx.x));
  const auto place = [&](int row) { return mask.place(block.begin + row, head); };
  const auto query = [&](int row) -> const T* { return row < rows ? row_at<const T>(p.q, place(row)) : nullptr; };
  const auto row_of = [](int t) { return (wave() * kTiles + t) * kTile; };

  Softmax<T> softmax[kTiles];
  MmaTile<T> out[kTiles][columns / kTile];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    softmax[t].reset();
#pragma unroll
    for (MmaTile<T>& tile : out[t]) tile.zero();
  }
  for (Index i = begin; i < end; ++i) {
    const Index first = spans.at(i);
    const bool whole = all.all_of({first, first + kSpan});
    const auto key_of = [&](const View& x) {
      return [&x, &mask, first, last_key, head](int j) -> const T* {
        return first + j < last_key ? row_at<const T>(x, {mask.sequence.batch, first + j, head}) : nullptr;
      };
    };

    MmaTile<T> scores[kTiles][kSpan / kTile];
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (MmaTile<T>& tile : scores[t]) tile.zero();
    for (int slice = 0; slice < slices; ++slice) {
      __syncthreads();
      if (i == begin || slices > 1) stage<kSlice, kRows, 2>(q, p.q, slice * kSlice, query);
      stage<kSlice, kSpan, kAtOnce>(kv, p.k, slice * kSlice, key_of(p.k));
      __syncthreads();
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        if (row_of(t) < rows) add_scores<kSlice>(scores[t], q + row_of(t) * kPitch, kv, depth - slice * kSlice);
    }

    if (slices == 0) __syncthreads();  // the rows' positions
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (row_of(t) >= rows) continue;
      const auto sees = [&](int row, int j) { return mask.from(position[row_of(t) + row]).has(first + j); };
      float factor[Unit::kHeldRows];
      softmax[t].weigh(scores[t], p.scale, whole, sees, factor, weights + row_of(t) * kWeightPitch);
#pragma unroll
      for (MmaTile<T>& tile : out[t])
#pragma unroll
        for (int e = 0; e < Unit::kElements; ++e) tile.c[e] *= factor[Unit::held(e)];
    }

#pragma unroll
    for (int column = 0; column < columns; column += kSlice) {
      if (first_column + column >= width) continue;
      __syncthreads();
      const bool seen = stage<kSlice, kSpan, kAtOnce>(kv, p.v, first_column + column, key_of(p.v), !whole);
      if (!whole) tell(special, seen);
      __syncthreads();
      const bool finite = whole || !told(special);
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        if (row_of(t) < rows)
          add_weighted<kSlice / kTile>(out[t] + column / kTile, weights + row_of(t) * kWeightPitch, kWeightPitch, kv,
                                       kPitch, width - first_column - column, finite);
    }
  }

  const int64_t task = int64_t{row_block} * grid.heads + head;
  float inverse[kTiles][Unit::kHeldRows];
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int h = 0; h < Unit::kHeldRows; ++h) {
      const float sum = wave_sum<Unit::kAcross>(softmax[t].sum[h]), largest = softmax[t].largest[h];
      inverse[t][h] = sum == 0 ? 0.0f : 1.0f / sum;
      const int row = row_of(t) + Unit::row(Unit::element(h));
      if (row >= rows || Unit::column(0) != 0 || first_column != 0) continue;
      const Place at = place(row);
      float* stats = partial.stats + ((task * grid.splits + split) * kRows + row) * 2;
      if (grid.splits > 1)
        stats[0] = largest, stats[1] = sum;
      else
        lse[(at.b * s.heads * s.group + at.h) * s.queries + at.i] = lse_of(largest, sum);
    }
  if (grid.splits > 1) {
    float* to = partial.o + (task * grid.splits + split) * kRows * width;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int n = 0; n < columns / kTile; ++n)
        out[t][n].each([&](int row, int column, float& value) {
          row += row_of(t), column += n * kTile;
          if (row < rows && first_column + column < width) to[int64_t{row} * width + first_column + column] = value;
        });
    return;
  }
  const auto result = [&](int row) -> T* { return row < rows ? row_at<T>(o, place(row)) : nullptr; };
#pragma unroll
  for (int column = 0; column < columns; column += kSlice) {
    if (first_column + column >= width) continue;
    __syncthreads();
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int n = 0; n < kSlice; n += kTile)
#pragma unroll
        for (int e = 0; e < Unit::kElements; ++e)
          q[(row_of(t) + Unit::row(e)) * kPitch + n + Unit::column(e)] =
              from_float<T>(out[t][(column + n) / kTile].c[e] * inverse[t][Unit::held(e)]);
    __syncthreads();
    unstage<kSlice, kRows>(q, o, first_column + column, result);
  }
}

// A block: one row of a task. Every thread reads the row's largest scores and sums of all splits and adds up, in the
// splits' order, its own columns of partial.o [task][split][64][width], 128 apart. Nothing is shared: no barrier.
template <class T> __global__ void __launch_bounds__(kThreads)
    merge(Problem p, Grid grid, View o, float* lse, Partial partial) {
  const Shape& s = p.shape;
  const int64_t task = blockIdx.x / kRows, head = task % grid.heads;
  const int row = static_cast<int>(blockIdx.x % kRows);
  const Block block = block_at<Axis::rows>(p, static_cast<Index>(task / grid.heads), kRows);
  if (row >= block.end - block.begin) return;
  const int64_t first = task * grid.splits * kRows + row;
  const auto largest = [&](uint32_t split) { return partial.stats[(first + split * kRows) * 2]; };
  float top = -kInfinity;
  for (uint32_t i = 0; i < grid.splits; ++i) top = fmaxf(top, largest(i));
  const float reference = top == -kInfinity ? 0.0f : top;
  float sum = 0;
  for (uint32_t i = 0; i < grid.splits; ++i)
    sum += partial.stats[(first + i * kRows) * 2 + 1] * exp2f(largest(i) - reference);

  const Place at = block.mask.place(block.begin + row, head);
  if (threadIdx.x == 0) lse[(at.b * s.heads * s.group + at.h) * s.queries + at.i] = lse_of(top, sum);
  for (int64_t column = threadIdx.x; column < s.width; column += kThreads) {
    float value = 0;
    for (uint32_t i = 0; i < grid.splits; ++i)
      value += partial.o[(first + i * kRows) * s.width + column] * exp2f(largest(i) - reference);
    row_at<T>(o, at)[column] = from_float<T>(sum == 0 ? 0.0f : value / sum);
  }
}

void launch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
            const Tensor& kv_lengths, bool causal, int64_t window, double scale, int64_t sinks, const Tensor& o,
            const Tensor& lse, const Launch& launch) {
  const Shape s = shape_of(q, k, v, cu_q, cu_k, kv_lengths, causal, window, sinks);
  const Problem p = problem_of(q, k, v, cu_q, cu_k, kv_lengths, s, causal, window, scale, sinks);
  const Grid grid = grid_of(s, q.dtype, window, sinks);
  const View out = view_of(o);
  float* const logs = static_cast<float*>(lse.data);
  Partial partial = {reinterpret_cast<float*>(launch.workspace), nullptr};
  partial.stats = partial.o + partial_rows(grid) * s.width;
  with_float(q.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    const auto kernel = grid.columns == 64    ? attend<T, 64>
                        : grid.columns == 128 ? attend<T, 128>
                                              : attend<T, kWidest<T>>;
    launch_kernel("attention", kernel, grid.tasks() * grid.tiles * grid.splits, kThreads, launch, p, grid, out, logs,
                  partial);
    if (grid.splits > 1)
      launch_kernel("attention", merge<T>, grid.tasks() * kRows, kThreads, launch, p, grid, out, logs, partial);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(attention, 1, plan, launch)
