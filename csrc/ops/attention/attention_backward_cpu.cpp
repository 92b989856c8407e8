// attention_backward: probabilities are recomputed from the LSE, once for grad_k and grad_v (a task owns a block of
// keys), once for grad_q (one of rows): no two add to the same gradient. The picture is in attention_tiles_cpu.h.
#include "attention_tiles_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kKeys = 96;  // keys of a block: whole panels, and whole register tiles of the transposed products

struct Scratch {
  float *q, *grad_o;  // rows of a block, as both operands of a product
  float *p, *ds;      // probabilities, and gradients of the scaled scores
  float *grad_q, *grad_k, *grad_v;
};

struct Workspace {
  int64_t blocks, key_blocks, slots;
  RowBlock* block;
  float *keys_t, *values_t, *keys;
  uint8_t* finite;
  float *lse, *delta;  // one a row: exponent of 2 (+inf where no key is seen), and sum(grad_o * o) - grad_lse
  Scratch slot[kMaxThreads];
};

int64_t carve(const Shape& s, void* memory, Workspace* w) {
  w->blocks = most_row_blocks(s);
  w->key_blocks = ceil_div(s.keys, kKeys);
  const int64_t packed = s.batch * s.heads * w->key_blocks, rows = s.batch * s.heads * s.group * s.queries;
  w->slots = min(kMaxThreads, packed + w->blocks * s.heads);
  Carver carver(memory);
  w->block = carver.take<RowBlock>(w->blocks);
  w->keys_t = carver.take<float>(packed * kKeys * s.depth);
  w->values_t = carver.take<float>(packed * kKeys * s.width);
  w->keys = carver.take<float>(packed * kKeys * pitch_of(s.depth));
  w->finite = carver.take<uint8_t>(packed);
  w->lse = carver.take<float>(rows);
  w->delta = carver.take<float>(rows);
  for (int64_t i = 0; i < w->slots; ++i) {
    Scratch& t = w->slot[i];
    t.q = carver.take<float>(kRows * pitch_of(s.depth));
    t.grad_o = carver.take<float>(kRows * pitch_of(s.width));
    t.p = carver.take<float>(kRows * kKeys);
    t.ds = carver.take<float>(kRows * kKeys);
    t.grad_k = carver.take<float>(kKeys * round_up(s.depth, kPanel));
    t.grad_v = carver.take<float>(kKeys * round_up(s.width, kPanel));
    t.grad_q = carver.take<float>(kRows * round_up(s.depth, kPanel));
  }
  return carver.bytes;
}

int64_t plan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
             const Tensor& kv_lengths, const Tensor& o, const Tensor& lse, const Tensor& grad_o, const Tensor& grad_lse,
             bool causal, int64_t window, double, int64_t sinks) {
  const Shape s = shape_of(q, k, v, cu_q, cu_k, kv_lengths, causal, window, sinks);
  check_output("o", o, q, s);
  check_lse("lse", lse, s);
  if (defined(grad_o)) check_output("grad_o", grad_o, q, s);
  if (defined(grad_lse)) check_lse("grad_lse", grad_lse, s);
  Workspace w;
  return carve(s, nullptr, &w);
}

struct Call : Problem {
  const Tensor &o, &lse, &grad_o, &grad_lse, &grad_q, &grad_k, &grad_v;
  Workspace w;
};

template <class T> void pack_block(const Call& c, int64_t at) {
  const Shape& s = c.shape;
  const int64_t b = at / (c.w.key_blocks * s.heads), head = at / c.w.key_blocks % s.heads;
  const int64_t first = at % c.w.key_blocks * kKeys, count = min(kKeys, s.keys - first);
  const T *k = row_at<T>(c.k, b, first, head), *v = row_at<T>(c.v, b, first, head);
  pack_transposed(k, c.k.stride[1], count, kKeys, s.depth, c.w.keys_t + at * kKeys * s.depth);
  pack_transposed(v, c.v.stride[1], count, kKeys, s.width, c.w.values_t + at * kKeys * s.width);
  const int64_t pitch = pitch_of(s.depth);
  c.w.finite[at] = pack_rows(k, c.k.stride[1], count, kKeys, s.depth, c.w.keys + at * kKeys * pitch);
}

// Fills lse and delta for the rows of one query, head after head.
template <class T> void prepare_query(const Call& c, int64_t b, int64_t i) {
  const Shape& s = c.shape;
  for (int64_t h = 0; h < s.heads * s.group; ++h) {
    const int64_t row = ((b * s.heads + h / s.group) * s.queries + i) * s.group + h % s.group;
    const float lse = lse_at(c.lse, b, h, i);
    vf dot = zero();
    for (int64_t n = 0; n < s.width && defined(c.grad_o); n += kLanes)
      dot += load(row_at<T>(c.o, b, i, h) + n, s.width - n) * load(row_at<T>(c.grad_o, b, i, h) + n, s.width - n);
    c.w.lse[row] = lse == -kInfinity ? kInfinity : static_cast<float>(lse * kLog2e);
    c.w.delta[row] = lse == -kInfinity ? 0.0f : sum(dot) - (defined(c.grad_lse) ? lse_at(c.grad_lse, b, h, i) : 0.0f);
  }
}

int64_t first_row_of(const Call& c, const Sequence& q, int64_t head) {
  return ((q.batch * c.shape.heads + head) * c.shape.queries + q.first_query) * c.shape.group;
}

// Returns whether every value is finite.
template <class T> bool pack_queries(const Call& c, const Mask& mask, int64_t head, Range rows, const Scratch& t) {
  const float* lse = c.w.lse + first_row_of(c, mask.sequence, head);
  const bool q = pack_query_rows<T>(c.q, mask, head, rows, c.shape.depth, c.scale, lse, t.q);
  return pack_query_rows<T>(c.grad_o, mask, head, rows, c.shape.width, 1.0f, lse, t.grad_o) && q;
}

// From scores and grad_o v^T, in place, to probabilities and score gradients; zeros where masked.
void differentiate(const Call& c, const Mask& mask, const Tile& tile, Range rows, int64_t head, int64_t first_key,
                   const Scratch& t) {
  const int64_t base = first_row_of(c, mask.sequence, head) + rows.begin;
  const bool whole = tile.all && tile.vectors.begin == 0 && tile.vectors.end == kKeys;
  for (int64_t r = tile.row; r < tile.row + tile.rows; ++r) {
    const vf lse = set(c.w.lse[base + r]), delta = set(c.w.delta[base + r]);
    const Visible visible = mask.at(rows.begin + r);
    for (int64_t n = 0; n < kKeys; n += kLanes) {
      float *p = t.p + r * kKeys + n, *ds = t.ds + r * kKeys + n;
      vf weight = exp2(load(p) - lse), gradient = weight * (load(ds) - delta);
      if (!whole) {
        const vi seen = visible_lanes(visible, first_key + n);
        weight = select(seen, weight, zero());
        gradient = select(seen, gradient, zero());
      }
      store(p, weight);
      store(ds, gradient);
    }
  }
}

// t.p and t.ds of a block of rows and a block of keys.
void score_gradients(const Call& c, const Mask& mask, const Tiles& tiles, Range rows, int64_t head, int64_t key_block,
                     const Scratch& t) {
  const Shape& s = c.shape;
  const int64_t q_pitch = pitch_of(s.depth), o_pitch = pitch_of(s.width);
  const int64_t at = (mask.sequence.batch * s.heads + head) * c.w.key_blocks + key_block;
  const float* keys = c.w.keys_t + at * kKeys * s.depth;
  const float* values = c.w.values_t + at * kKeys * s.width;
  for (int64_t n = 0; n < kKeys; n += kPanel)
    for (const Tile& tile : tiles) {
      if (!tile.sees(n, n + kPanel)) continue;
      multiply<false, Update::overwrite>(tile.rows, s.depth, {t.q + tile.row * q_pitch, q_pitch},
                                         {keys + n * s.depth, kPanel}, t.p + tile.row * kKeys + n, kKeys);
      multiply<false, Update::overwrite>(tile.rows, s.width, {t.grad_o + tile.row * o_pitch, o_pitch},
                                         {values + n * s.width, kPanel}, t.ds + tile.row * kKeys + n, kKeys);
    }
  for (const Tile& tile : tiles) differentiate(c, mask, tile, rows, head, key_block * kKeys, t);
}

// out [kKeys, columns] += weights^T x: for every tile of keys, over the rows that see one of them.
void add_over_rows(const Tiles& tiles, bool finite, const float* weights, const float* x, int64_t columns, float* out) {
  const int64_t pitch = pitch_of(columns), padded = round_up(columns, kPanel);
  for (int64_t n = 0; n < padded; n += kPanel)
    for (int64_t key = 0; key < kKeys; key += kTileRows) {
      Range rows = {0, 0};
      for (const Tile& tile : tiles)
        if (tile.sees(key, key + kTileRows)) rows = {rows.end == 0 ? tile.row : rows.begin, tile.row + tile.rows};
      if (rows.end == 0) continue;
      const auto product = finite ? multiply<true, Update::add> : multiply_nonzero<true>;
      product(kTileRows, rows.end - rows.begin, {weights + rows.begin * kKeys + key, kKeys},
              {x + rows.begin * pitch + n, pitch}, out + key * padded + n, padded, nullptr);
    }
}

template <class T> void key_gradients(const Call& c, int64_t task, const Scratch& t) {
  const Shape& s = c.shape;
  const int64_t head = task % s.heads, b = task / s.heads % s.batch, key_block = task / (s.heads * s.batch);
  const int64_t first = key_block * kKeys, end = min(s.keys, first + kKeys);
  const int64_t k_pitch = round_up(s.depth, kPanel), v_pitch = round_up(s.width, kPanel);
  clear(t.grad_k, kKeys * k_pitch);
  clear(t.grad_v, kKeys * v_pitch);
  for (int64_t n = s.ragged ? 0 : b; n < (s.ragged ? s.sequences : b + 1); ++n) {
    const Mask mask = c.mask(n);
    if (mask.sequence.first_key >= end || mask.sequence.first_key + mask.sequence.keys <= first) continue;
    for (int64_t row = 0; row < mask.rows(); row += kRows) {
      const Range rows = rows_of(mask, {n, row});
      if (!mask.by_any(rows).any_of({first, end})) continue;
      const Tiles tiles(mask, rows, {first, first + kKeys});
      const bool finite = pack_queries<T>(c, mask, head, rows, t) || mask.by_all(rows).all_of({first, first + kKeys});
      score_gradients(c, mask, tiles, rows, head, key_block, t);
      add_over_rows(tiles, finite, t.p, t.grad_o, s.width, t.grad_v);
      add_over_rows(tiles, finite, t.ds, t.q, s.depth, t.grad_k);
    }
  }
  for (int64_t j = first; j < end; ++j) {
    const int64_t row = (b * s.keys + j) * s.heads + head;
    write_row(t.grad_k + (j - first) * k_pitch, kLn2, s.depth, static_cast<T*>(c.grad_k.data) + row * s.depth);
    write_row(t.grad_v + (j - first) * v_pitch, 1.0f, s.width, static_cast<T*>(c.grad_v.data) + row * s.width);
  }
}

template <class T> void query_gradients(const Call& c, int64_t task, const Scratch& t) {
  const Shape& s = c.shape;
  const RowBlock& block = c.w.block[task / s.heads];
  const int64_t head = task % s.heads, pitch = pitch_of(s.depth), padded = round_up(s.depth, kPanel);
  const Mask mask = c.mask(block.sequence);
  const Range rows = rows_of(mask, block);
  pack_queries<T>(c, mask, head, rows, t);
  clear(t.grad_q, kRows * padded);
  for (int64_t key_block = 0; key_block < c.w.key_blocks; ++key_block) {
    const Range block_keys = {key_block * kKeys, (key_block + 1) * kKeys};
    if (!mask.by_any(rows).any_of(block_keys)) continue;
    const Tiles tiles(mask, rows, block_keys);
    score_gradients(c, mask, tiles, rows, head, key_block, t);
    const int64_t at = (mask.sequence.batch * s.heads + head) * c.w.key_blocks + key_block;
    const float* keys = c.w.keys + at * kKeys * pitch;
    for (int64_t n = 0; n < padded; n += kPanel)
      for (const Tile& tile : tiles) {
        if (!tile.sees(0, kKeys)) continue;
        const auto product = c.w.finite[at] || tile.all ? multiply<false, Update::add> : multiply_nonzero<false>;
        product(tile.rows, tile.hull.end - tile.hull.begin, {t.ds + tile.row * kKeys + tile.hull.begin, kKeys},
                {keys + tile.hull.begin * pitch + n, pitch}, t.grad_q + tile.row * padded + n, padded, nullptr);
      }
  }
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const Place to = mask.place(r, head);
    T* out = static_cast<T*>(c.grad_q.data) + ((to.b * s.queries + to.i) * s.heads * s.group + to.h) * s.depth;
    write_row(t.grad_q + (r - rows.begin) * padded, c.scale * kLn2, s.depth, out);
  }
}

void launch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
            const Tensor& kv_lengths, const Tensor& o, const Tensor& lse, const Tensor& grad_o, const Tensor& grad_lse,
            bool causal, int64_t window, double scale, int64_t sinks, const Tensor& grad_q, const Tensor& grad_k,
            const Tensor& grad_v, const Launch& launch) {
  const Shape s = shape_of(q, k, v, cu_q, cu_k, kv_lengths, causal, window, sinks);
  check_data(s, cu_q, cu_k, kv_lengths);
  const Problem problem = {
      q, k, v, cu_q, cu_k, kv_lengths, s, causal, window, sinks, static_cast<float>(scale * kLog2e)};
  Call c = {problem, o, lse, grad_o, grad_lse, grad_q, grad_k, grad_v, Workspace()};
  carve(s, launch.workspace, &c.w);
  const int threads = static_cast<int>(max<int64_t>(1, min<int64_t>(launch.num_threads, c.w.slots)));
  const int64_t blocks = list_row_blocks(c, c.w.block), packed = s.batch * s.heads * c.w.key_blocks;
  with_float(q.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    clear_padding<T>(c, grad_q, s.depth);
    parallel_for(packed, threads, [&](int64_t i, int) { pack_block<T>(c, i); });
    parallel_for(s.batch * s.queries, threads,
                 [&](int64_t i, int) { prepare_query<T>(c, i / s.queries, i % s.queries); });
    parallel_for(packed + blocks * s.heads, threads, [&](int64_t task, int thread) {
      if (task < packed)
        key_gradients<T>(c, task, c.w.slot[thread]);
      else
        query_gradients<T>(c, task - packed, c.w.slot[thread]);
    });
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(attention_backward, 1, plan, launch)
