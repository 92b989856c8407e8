// attention: blocked online softmax. Keys and values are packed once for all query heads that share them; where every
// sequence's queries fit one block (decoding), a task packs what it reads, and the keys are split over tasks.
#include "attention_tiles_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kKeys = 192;          // keys of a block: whole panels of every instruction set
constexpr int64_t kMinSplitKeys = 512;  // fewer keys are not worth a task of their own
constexpr int64_t kSplitTasks = 64;     // decoding is split until there are about so many tasks

// Softmax numerators of a block of rows relative to 2^largest, and lane-wise sums of their weights.
struct State {
  float *o, *largest, *sums;
};

struct Scratch {
  float *q, *scores, *factor, *keys, *values;
  State state;
};

struct Workspace {
  int64_t rows, blocks, key_blocks, splits, slots, q_pitch, o_pitch, v_pitch;
  bool shared;  // keys and values are packed before the tasks start
  RowBlock* block;
  float *keys, *values;
  uint8_t* finite;
  State* partial;
  Scratch slot[kMaxThreads];
};

State take_state(Carver& carver, const Workspace& w) {
  return {carver.take<float>(w.rows * w.o_pitch), carver.take<float>(w.rows), carver.take<float>(w.rows * kLanes)};
}

int64_t carve(const Shape& s, void* memory, Workspace* w) {
  const int64_t rows = s.queries * s.group;
  w->rows = min(kRows, rows);
  w->blocks = most_row_blocks(s);
  w->key_blocks = ceil_div(s.keys, kKeys);
  w->shared = rows > kRows * (s.ragged ? s.sequences : 1);
  w->splits = 1;
  if (!w->shared && w->blocks * s.heads > 0)
    w->splits = max<int64_t>(1, min(ceil_div(s.keys, kMinSplitKeys), kSplitTasks / (w->blocks * s.heads)));
  const int64_t tasks = w->blocks * s.heads * w->splits;
  w->slots = min(kMaxThreads, tasks);
  w->q_pitch = pitch_of(s.depth);
  w->o_pitch = round_up(s.width, kPanel);
  w->v_pitch = pitch_of(s.width);

  Carver carver(memory);
  w->block = carver.take<RowBlock>(w->blocks);
  const int64_t packed = w->shared ? s.batch * s.heads * w->key_blocks : 0;
  w->keys = carver.take<float>(packed * kKeys * s.depth);
  w->values = carver.take<float>(packed * kKeys * w->v_pitch);
  w->finite = carver.take<uint8_t>(packed);
  w->partial = carver.take<State>(w->splits > 1 ? tasks : 0);
  for (int64_t i = 0; w->splits > 1 && i < tasks; ++i) {
    const State state = take_state(carver, *w);
    if (memory) w->partial[i] = state;
  }
  for (int64_t i = 0; i < w->slots; ++i) {
    Scratch& slot = w->slot[i];
    slot.q = carver.take<float>(w->rows * w->q_pitch);
    slot.scores = carver.take<float>(w->rows * kKeys);
    slot.factor = carver.take<float>(w->rows);
    slot.keys = carver.take<float>(w->shared ? 0 : kKeys * s.depth);
    slot.values = carver.take<float>(w->shared ? 0 : kKeys * w->v_pitch);
    slot.state = take_state(carver, *w);
  }
  return carver.bytes;
}

int64_t plan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
             const Tensor& kv_lengths, bool causal, int64_t window, double, int64_t sinks) {
  Workspace w;
  return carve(shape_of(q, k, v, cu_q, cu_k, kv_lengths, causal, window, sinks), nullptr, &w);
}

struct Call : Problem {
  const Tensor &o, &lse;
  Workspace w;
};

template <class T> bool pack_block(const Call& c, int64_t b, int64_t head, int64_t block, float* keys, float* values) {
  const Shape& s = c.shape;
  const int64_t first = block * kKeys, count = min(kKeys, s.keys - first);
  const int64_t padded = min(kKeys, round_up(count, kPanel));  // panels past it are never read
  pack_transposed(row_at<T>(c.k, b, first, head), c.k.stride[1], count, padded, s.depth, keys);
  return pack_rows(row_at<T>(c.v, b, first, head), c.v.stride[1], count, padded, s.width, values);
}

// One row of scores becomes weights 2^(score - largest); returns the factor for everything summed before.
float weigh_row(float* scores, Range range, float* largest, float* sums) {
  vf top = set(-kInfinity);
  for (int64_t n = range.begin; n < range.end; n += kLanes) top = vmax(top, load(scores + n));
  const vf before = set(*largest);
  top = vmax(before, spread_largest(top));
  const vf reference = select(top == set(-kInfinity), zero(), top);
  vf total = zero();
  for (int64_t n = range.begin; n < range.end; n += kLanes) {
    const vf weight = exp2(load(scores + n) - reference);
    total += weight;
    store(scores + n, weight);
  }
  const vf factor = exp2(before - reference);
  store(sums, load(sums) * factor + total);
  *largest = top[0];
  return factor[0];
}

void weigh(const Mask& mask, const Tile& tile, int64_t row, int64_t first_key, const Scratch& t) {
  for (int64_t r = tile.row; r < tile.row + tile.rows; ++r) {
    float* scores = t.scores + r * kKeys;
    if (!tile.all) {
      const Visible visible = mask.at(row + r);
      for (int64_t n = tile.vectors.begin; n < tile.vectors.end; n += kLanes)
        store(scores + n, select(visible_lanes(visible, first_key + n), load(scores + n), set(-kInfinity)));
    }
    t.factor[r] = weigh_row(scores, tile.vectors, t.state.largest + r, t.state.sums + r * kLanes);
  }
}

// Adds one block of keys to the state of the rows.
void attend_block(const Call& c, const Mask& mask, Range rows, int64_t first_key, const float* keys,
                  const float* values, bool finite, const Scratch& t) {
  const int64_t depth = c.shape.depth, q_pitch = c.w.q_pitch, o_pitch = c.w.o_pitch, v_pitch = c.w.v_pitch;
  const Tiles tiles(mask, rows, {first_key, first_key + kKeys});
  for (int64_t n = 0; n < kKeys; n += kPanel)
    for (const Tile& tile : tiles)
      if (tile.sees(n, n + kPanel))
        multiply<false, Update::overwrite>(tile.rows, depth, {t.q + tile.row * q_pitch, q_pitch},
                                           {keys + n * depth, kPanel}, t.scores + tile.row * kKeys + n, kKeys);
  for (const Tile& tile : tiles)
    if (tile.sees(0, kKeys)) weigh(mask, tile, rows.begin, first_key, t);
  for (int64_t n = 0; n < o_pitch; n += kPanel)
    for (const Tile& tile : tiles) {
      if (!tile.sees(0, kKeys)) continue;
      const auto product = finite || tile.all ? multiply<false, Update::scale> : multiply_nonzero<false>;
      product(tile.rows, tile.hull.end - tile.hull.begin, {t.scores + tile.row * kKeys + tile.hull.begin, kKeys},
              {values + tile.hull.begin * v_pitch + n, v_pitch}, t.state.o + tile.row * o_pitch + n, o_pitch,
              t.factor + tile.row);
    }
}

void reset(const Workspace& w, int64_t rows, const State& state) {
  clear(state.o, rows * w.o_pitch);
  clear(state.sums, rows * kLanes);
  for (int64_t i = 0; i < rows; ++i) state.largest[i] = -kInfinity;
}

void merge(const Workspace& w, int64_t rows, const State& into, const State& from) {
  for (int64_t r = 0; r < rows; ++r) {
    const vf a = set(into.largest[r]), b = set(from.largest[r]), top = vmax(a, b);
    const vf reference = select(top == set(-kInfinity), zero(), top);
    const vf keep = exp2(a - reference), add = exp2(b - reference);
    const auto blend = [&](float* x, const float* y) { store(x, load(x) * keep + load(y) * add); };
    for (int64_t n = r * w.o_pitch; n < (r + 1) * w.o_pitch; n += kLanes) blend(into.o + n, from.o + n);
    blend(into.sums + r * kLanes, from.sums + r * kLanes);
    into.largest[r] = top[0];
  }
}

template <class T> void finish(const Call& c, const Mask& mask, int64_t head, Range rows, const State& state) {
  const Shape& s = c.shape;
  const int64_t query_heads = s.heads * s.group;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t row = r - rows.begin;
    const Place at = mask.place(r, head);
    const float total = sum(load(state.sums + row * kLanes));
    T* o = static_cast<T*>(c.o.data) + ((at.b * s.queries + at.i) * query_heads + at.h) * s.width;
    write_row(state.o + row * c.w.o_pitch, total == 0 ? 0.0f : 1.0f / total, s.width, o);
    static_cast<float*>(c.lse.data)[(at.b * query_heads + at.h) * s.queries + at.i] =
        total == 0 ? -kInfinity : state.largest[row] * kLn2 + __builtin_logf(total);
  }
}

// Rows of one block of one key/value head, over one of the splits of their keys: the picture in attention_tiles_cpu.h.
template <class T> void attend(const Call& c, int64_t task, const Scratch& scratch) {
  const Shape& s = c.shape;
  const Workspace& w = c.w;
  const int64_t split = task % w.splits, head = task / w.splits % s.heads;
  const RowBlock& block = w.block[task / (w.splits * s.heads)];
  const Mask mask = c.mask(block.sequence);
  const Range rows = rows_of(mask, block);
  Scratch t = scratch;
  if (w.splits > 1) t.state = w.partial[task];
  reset(w, rows.end - rows.begin, t.state);
  pack_query_rows<T>(c.q, mask, head, rows, s.depth, c.scale, nullptr, t.q);

  const Visible any = mask.by_any(rows);
  const Range hull = any.any_of({0, s.keys}) ? any.hull_in({0, s.keys}) : Range{0, 0};
  const int64_t begin = hull.begin / kKeys, count = ceil_div(hull.end, kKeys) - begin;
  for (int64_t n = begin + count * split / w.splits; n < begin + count * (split + 1) / w.splits; ++n) {
    if (!any.any_of({n * kKeys, (n + 1) * kKeys})) continue;
    const int64_t at = (mask.sequence.batch * s.heads + head) * w.key_blocks + n;
    const float* keys = w.shared ? w.keys + at * kKeys * s.depth : t.keys;
    const float* values = w.shared ? w.values + at * kKeys * w.v_pitch : t.values;
    const bool finite = w.shared ? w.finite[at] : pack_block<T>(c, mask.sequence.batch, head, n, t.keys, t.values);
    attend_block(c, mask, rows, n * kKeys, keys, values, finite, t);
  }
  if (w.splits == 1) finish<T>(c, mask, head, rows, t.state);
}

template <class T> void merge_splits(const Call& c, int64_t task) {
  const RowBlock& block = c.w.block[task / c.shape.heads];
  const Mask mask = c.mask(block.sequence);
  const Range rows = rows_of(mask, block);
  const State* parts = c.w.partial + task * c.w.splits;
  for (int64_t i = 1; i < c.w.splits; ++i) merge(c.w, rows.end - rows.begin, parts[0], parts[i]);
  finish<T>(c, mask, task % c.shape.heads, rows, parts[0]);
}

void launch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
            const Tensor& kv_lengths, bool causal, int64_t window, double scale, int64_t sinks, const Tensor& o,
            const Tensor& lse, const Launch& launch) {
  const Shape s = shape_of(q, k, v, cu_q, cu_k, kv_lengths, causal, window, sinks);
  check_data(s, cu_q, cu_k, kv_lengths);
  Call c = {
      {q, k, v, cu_q, cu_k, kv_lengths, s, causal, window, sinks, static_cast<float>(scale * kLog2e)}, o, lse, {}};
  carve(s, launch.workspace, &c.w);
  const int threads = static_cast<int>(min<int64_t>(launch.num_threads, max<int64_t>(c.w.slots, 1)));
  const int64_t blocks = list_row_blocks(c, c.w.block);
  with_float(q.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    clear_padding<T>(c, o, s.width);
    for (int64_t i = 0; i < s.batch * s.heads * s.group * s.queries; ++i) static_cast<float*>(lse.data)[i] = -kInfinity;
    if (c.w.shared)
      parallel_for(s.batch * s.heads * c.w.key_blocks, threads, [&](int64_t i, int) {
        const int64_t block = i % c.w.key_blocks, head = i / c.w.key_blocks % s.heads;
        c.w.finite[i] = pack_block<T>(c, i / (c.w.key_blocks * s.heads), head, block, c.w.keys + i * kKeys * s.depth,
                                      c.w.values + i * kKeys * c.w.v_pitch);
      });
    parallel_for(blocks * s.heads * c.w.splits, threads,
                 [&](int64_t task, int thread) { attend<T>(c, task, c.w.slot[thread]); });
    if (c.w.splits > 1) parallel_for(blocks * s.heads, threads, [&](int64_t task, int) { merge_splits<T>(c, task); });
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(attention, 1, plan, launch)
