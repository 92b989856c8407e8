// attention_backward: probabilities are recomputed from the LSE, once for grad_k and grad_v, where a block of threads
// owns keys and walks along the rows that see them, and once for grad_q, where it owns rows and walks along keys. So
// every gradient has one owner, which sums the query heads of its key/value head too.
//
// Both are one kernel: the owner's side lies in shared memory, the other passes by, and from the two products between
// them come the weights of a third. Four units of work, two tiles of the owner's times two halves, go to the
// wavefronts: first halves of what passes by, then halves of the columns of the gradients.
#include "attention_blocks_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kOwn = 32;  // rows or keys of a block
constexpr int kHalves = 2;
constexpr int kWeightPitch = kSpan + kPad;
constexpr int kRowLanes = 16;  // lanes that take one row in preparation

SBHAL_BOTH int64_t count_rows(const Shape& s) { return s.batch * s.heads * s.queries * s.group; }

int64_t plan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
             const Tensor& kv_lengths, const Tensor& o, const Tensor& lse, const Tensor& grad_o, const Tensor& grad_lse,
             bool causal, int64_t window, double, int64_t sinks) {
  const Shape s = shape_of(q, k, v, cu_q, cu_k, kv_lengths, causal, window, sinks);
  check_sizes(s);
  check_output("o", o, q, s);
  check_lse("lse", lse, s);
  if (defined(grad_o)) check_output("grad_o", grad_o, q, s);
  if (defined(grad_lse)) check_lse("grad_lse", grad_lse, s);
  return 2 * count_rows(s) * static_cast<int64_t>(sizeof(float));
}

// Of each row, stacked as [batch, heads, queries, group].
struct RowValues {
  float *lse, *delta;  // exponent of 2 (+inf where no key is seen), and sum(grad_o * o) - grad_lse
};

// A block: eight rows, 16 lanes each. A lane multiplies every 16th pack of 16 bytes of the row's o and grad_o; the sums
// meet by shuffles, for which lanes without a row stay, and the row's first lane writes. Nothing is shared: no barrier.
template <class T> __global__ void __launch_bounds__(kThreads)
    prepare(Shape s, View o, View grad_o, Tensor lse, Tensor grad_lse, RowValues values) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kRowLanes) + threadIdx.x / kRowLanes;
  const bool there = row < count_rows(s);
  const int64_t b = row / (s.heads * s.queries * s.group), i = row / s.group % s.queries;
  const int64_t h = row / (s.queries * s.group) % s.heads * s.group + row % s.group;
  float dot = 0;
  if (there && grad_o.data) {
    const T *left = row_at<const T>(o, {b, i, h}), *right = row_at<const T>(grad_o, {b, i, h});
    for (int n = static_cast<int>(threadIdx.x) % kRowLanes * kPack; n < o.columns; n += kRowLanes * kPack) {
      T a[kPack], c[kPack];
      load_part(left + n, o.columns - n, o.aligned, a);
      load_part(right + n, o.columns - n, grad_o.aligned, c);
#pragma unroll
      for (int e = 0; e < kPack; ++e) dot += to_float(a[e]) * to_float(c[e]);
    }
  }
  dot = wave_sum<kRowLanes>(dot);
  if (!there || threadIdx.x % kRowLanes != 0) return;
  const float log = lse_at(lse, b, h, i);
  values.lse[row] = log == -kInfinity ? kInfinity : log * static_cast<float>(kLog2e);
  values.delta[row] = dot - (defined(grad_lse) ? lse_at(grad_lse, b, h, i) : 0.0f);
}

struct Gradients {
  View grad_o, first, second;  // what comes from the scores' gradients, and what from the probabilities: none for rows
  float scale;
  RowValues values;
  int64_t blocks;
  uint32_t heads, tiles;
};

// A block: 32 keys or rows of one key/value head, and of their gradients one slice of the columns: grad_k and grad_v,
// or grad_q. In shared memory:
//
//   own_first, own_second  [32][slice] k and v, or q and grad_o, of the block's own; at the end the gradients
//   first, second          [32][slice] q and grad_o, or k and v, of what passes by
//   weights, gradients     [32 own][32 passing] probabilities (only where keys are owned) and the scores' gradients
//   lse, delta, position   [32] of the rows, on whichever side they are
//
// Registers of a unit: scores and products, [16 own][16 passing], then its sums, [16 own][slice / 2]. A step: by
// slices, the block's own last (barrier, stage, barrier, add scores and products); weights and gradients to shared
// memory; barrier; add to the sums what first and second still hold. The barriers wait for the readers of the slice or
// step before, show what was staged, and bring together the two halves of the weights, which two wavefronts may have
// made. After the steps one waits for the readers of own_first and own_second, one shows the gradients there.
template <class T, int slice, Axis own> __global__ void SBHAL_BOUNDS(kThreads, 2)
    differentiate(Problem p, Gradients g) {
  constexpr bool kKeys = own == Axis::keys;
  constexpr int kPitch = slice + kPad, kHalf = slice / kHalves;
  constexpr int kUnits = kOwn / kTile * kHalves * SBHAL_WAVE / kThreads;  // of a wavefront
  using Unit = typename MmaTile<T>::Unit;
  SBHAL_SHARED(T, own_first, kOwn * kPitch);   // keys, or queries
  SBHAL_SHARED(T, own_second, kOwn * kPitch);  // values, or grad_o
  SBHAL_SHARED(T, first, kSpan * kPitch);      // of what passes by: queries, or keys
  SBHAL_SHARED(T, second, kSpan * kPitch);     // grad_o, or values
  SBHAL_SHARED(T, weights, kOwn * kWeightPitch);
  SBHAL_SHARED(T, gradients, kOwn * kWeightPitch);  // of the scores
  SBHAL_SHARED(float, lse, kSpan);
  SBHAL_SHARED(float, delta, kSpan);
  SBHAL_SHARED(Index, position, kSpan);
  SBHAL_SHARED(int, special_first, kThreads / SBHAL_WAVE);
  SBHAL_SHARED(int, special_second, kThreads / SBHAL_WAVE);

  const Shape& s = p.shape;
  const int tile = static_cast<int>(blockIdx.x % g.tiles), head = static_cast<int>(blockIdx.x / g.tiles % g.heads);
  const Index number = static_cast<Index>(blockIdx.x / g.tiles / g.heads);
  const Block block = block_at<own>(p, kKeys ? number : static_cast<Index>(g.blocks) - 1 - number, kOwn);
  const Mask& mask = block.mask;
  const Sequence& sequence = mask.sequence;
  const int count = block.end - block.begin;
  if (count <= 0) return;

  const Index last_key = sequence.first_key + sequence.keys;
  const int64_t first_row = ((sequence.batch * s.heads + head) * s.queries + sequence.first_query) * s.group;
  const auto key_of = [&](const View& x, Index from) {
    return [&x, &sequence, from, last_key, head](int j) -> const T* {
      return from + j < last_key ? row_at<const T>(x, {sequence.batch, from + j, head}) : nullptr;
    };
  };
  // Rows that see no key are zeros: nothing of theirs may enter a product.
  const auto query_of = [&](const View& x, Index from, Index end) {
    return [&x, &g, &mask, first_row, from, end, head](int j) -> const T* {
      const bool sees = from + j < end && g.values.lse[first_row + from + j] != kInfinity;
      return sees ? row_at<const T>(x, mask.place(from + j, head)) : nullptr;
    };
  };
  const auto load_values = [&](Index from, Index end) {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= kSpan) return;
    const bool there = from + i < end;
    lse[i] = there ? g.values.lse[first_row + from + i] : kInfinity;
    delta[i] = there ? g.values.delta[first_row + from + i] : 0.0f;
    position[i] = mask.position(from + i);
  };
  const Index own_key = sequence.first_key + block.begin;
  const Range rows = kKeys ? mask.rows_that_see({own_key, own_key + kOwn}) : Range{block.begin, block.end};
  const KeySpans spans(kKeys || rows.begin >= rows.end ? Visible{} : mask.by_any(rows), sequence.first_key);
  const Index steps = kKeys ? (rows.end - rows.begin + kSpan - 1) / kSpan : spans.count();
  const int depth = p.q.columns, width = p.v.columns, slices = max(1, (max(depth, width) + slice - 1) / slice);
  if (!kKeys) load_values(block.begin, block.end);

  MmaTile<T> sum_first[kUnits][kHalf / kTile], sum_second[kUnits][kKeys ? kHalf / kTile : 1];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
#pragma unroll
    for (MmaTile<T>& t : sum_first[u]) t.zero();
#pragma unroll
    for (MmaTile<T>& t : sum_second[u]) t.zero();
  }
  const auto own_of = [](int u) { return (wave() * kUnits + u) / kHalves * kTile; };
  const auto half_of = [](int u) { return (wave() * kUnits + u) % kHalves; };

  for (Index step = 0; step < steps; ++step) {
    const Index row = kKeys ? rows.begin + step * kSpan : rows.begin;
    const Index row_end = kKeys ? min(rows.end, row + kSpan) : rows.end;
    const Index key = kKeys ? own_key : spans.at(step);
    const bool whole = mask.by_all({row, row_end}).all_of({key, key + kSpan});

    MmaTile<T> scores[kUnits][1], products[kUnits][1];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) scores[u][0].zero(), products[u][0].zero();
    for (int n = 1; n <= slices; ++n) {
      const int column = (tile + n) % slices * slice;  // the block's own slice comes last, and stays for the sums
      __syncthreads();
      if (step == 0 || slices > 1) {
        if (kKeys) {
          stage<slice, kOwn, 1>(own_first, p.k, column, key_of(p.k, key));
          stage<slice, kOwn, 1>(own_second, p.v, column, key_of(p.v, key));
        } else {
          stage<slice, kOwn, 1>(own_first, p.q, column, query_of(p.q, row, row_end));
          stage<slice, kOwn, 1>(own_second, g.grad_o, column, query_of(g.grad_o, row, row_end));
        }
      }
      bool seen_first, seen_second = false;
      if (kKeys) {
        load_values(row, row_end);
        seen_first = stage<slice, kSpan, 2>(first, p.q, column, query_of(p.q, row, row_end), !whole);
        seen_second = stage<slice, kSpan, 2>(second, g.grad_o, column, query_of(g.grad_o, row, row_end), !whole);
      } else {
        seen_first = stage<slice, kSpan, 2>(first, p.k, column, key_of(p.k, key), !whole);
        stage<slice, kSpan, 2>(second, p.v, column, key_of(p.v, key));
      }
      if (!whole) tell(special_first, seen_first), tell(special_second, seen_second);
      __syncthreads();
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int mine = own_of(u) * kPitch, other = half_of(u) * kTile * kPitch;
        add_scores<slice>(scores[u], own_first + mine, first + other, depth - column);
        add_scores<slice>(products[u], own_second + mine, second + other, width - column);
      }
    }

#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int e = 0; e < Unit::kElements; ++e) {
        const int i = own_of(u) + Unit::row(e), j = half_of(u) * kTile + Unit::column(e), r = kKeys ? j : i;
        float weight = exp2f(scores[u][0].c[e] * p.scale - lse[r]);
        float gradient = weight * (products[u][0].c[e] - delta[r]);
        if (!whole && !mask.from(position[r]).has(key + (kKeys ? i : j))) weight = gradient = 0;
        if (kKeys) weights[i * kWeightPitch + j] = from_float<T>(weight);
        gradients[i * kWeightPitch + j] = from_float<T>(gradient);
      }
    __syncthreads();
    const bool finite_first = whole || !told(special_first), finite_second = whole || !told(special_second);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int mine = own_of(u) * kWeightPitch, half = half_of(u) * kHalf;
      const int left = max(depth, width) - tile * slice - half;
      add_weighted<kHalf / kTile>(sum_first[u], gradients + mine, kWeightPitch, first + half, kPitch, left,
                                  finite_first);
      if (kKeys)
        add_weighted<kHalf / kTile>(sum_second[u], weights + mine, kWeightPitch, second + half, kPitch, left,
                                    finite_second);
    }
  }

  __syncthreads();
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
#pragma unroll
    for (int n = 0; n < kHalf / kTile; ++n)
#pragma unroll
      for (int e = 0; e < Unit::kElements; ++e) {
        const int at = (own_of(u) + Unit::row(e)) * kPitch + half_of(u) * kHalf + n * kTile + Unit::column(e);
        own_first[at] = from_float<T>(sum_first[u][n].c[e] * g.scale);
        if (kKeys) own_second[at] = from_float<T>(sum_second[u][kKeys ? n : 0].c[e]);
      }
  __syncthreads();
  const auto result = [&](const View& x) {
    return [&x, &block, &sequence, count, own_key, head](int i) -> T* {
      if (i >= count) return nullptr;
      return row_at<T>(x, kKeys ? Place{sequence.batch, own_key + i, head} : block.mask.place(block.begin + i, head));
    };
  };
  unstage<slice, kOwn>(own_first, g.first, tile * slice, result(g.first));
  if (kKeys) unstage<slice, kOwn>(own_second, g.second, tile * slice, result(g.second));
}

template <class T, int slice> void differentiate_all(const Problem& p, Gradients g, const View& grad_q,
                                                     const View& grad_k, const View& grad_v, const Launch& launch) {
  const Shape& s = p.shape;
  g.heads = static_cast<uint32_t>(s.heads);
  g.tiles = static_cast<uint32_t>(max<int64_t>(1, ceil_div(max(s.depth, s.width), slice)));
  g.first = grad_k, g.second = grad_v, g.blocks = most_blocks<Axis::keys>(s, kOwn);
  launch_kernel("attention_backward", differentiate<T, slice, Axis::keys>, g.blocks * s.heads * g.tiles, kThreads,
                launch, p, g);
  g.first = grad_q, g.second = {}, g.blocks = most_blocks<Axis::rows>(s, kOwn);
  launch_kernel("attention_backward", differentiate<T, slice, Axis::rows>, g.blocks * s.heads * g.tiles, kThreads,
                launch, p, g);
}

void launch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
            const Tensor& kv_lengths, const Tensor& o, const Tensor& lse, const Tensor& grad_o, const Tensor& grad_lse,
            bool causal, int64_t window, double scale, int64_t sinks, const Tensor& grad_q, const Tensor& grad_k,
            const Tensor& grad_v, const Launch& launch) {
  const Shape s = shape_of(q, k, v, cu_q, cu_k, kv_lengths, causal, window, sinks);
  const Problem p = problem_of(q, k, v, cu_q, cu_k, kv_lengths, s, causal, window, scale, sinks);
  Gradients g = {};
  g.grad_o = view_of(grad_o), g.scale = static_cast<float>(scale);
  g.values.lse = reinterpret_cast<float*>(launch.workspace);
  g.values.delta = g.values.lse + count_rows(s);
  with_float(q.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    launch_kernel("attention_backward", prepare<T>, ceil_div(count_rows(s), kThreads / kRowLanes), kThreads, launch, s,
                  view_of(o), g.grad_o, lse, grad_lse, g.values);
    const bool narrow = max(s.depth, s.width) <= 64;
    const auto differentiate = narrow ? differentiate_all<T, 64> : differentiate_all<T, kWidestSlice<T>>;
    differentiate(p, g, view_of(grad_q), view_of(grad_k), view_of(grad_v), launch);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(attention_backward, 1, plan, launch)
