// gated_linear_attention_backward. The states are recomputed: checkpoints every `chunk` blocks, then every block of one
// chunk, then every token of one block, so memory grows with the square root of the length. A block's tokens are swept
// forwards (states and dq), then backwards (dk, dv, dg) with D = dL/dS carried from block to block.
#include "gated_linear_attention_rows_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// One task's slice of the workspace, in floats. States are S^T, the task's part of K: tiles of [V][width].
//
//   checkpoints  a state every `chunk` blocks          history   [16][V][width], one tile's states after each token
//   blocks       a state a block of one chunk          gradient  a state: D, carried from block to block
//   k, decay, dk, dg [16][part of K]; v, dv [16][V]; folded [17][part of K]; 16-bit q, grad_o, dq as float32
//
// A block: each tile goes forwards through its tokens (pass), then backwards (reverse), while history is in cache.
// Tasks write nothing that another reads: parallel_for ends before their shares of dv and dg are added.
struct Layout {
  int64_t state, chunk, k_pitch, v_pitch;  // floats of a state, blocks between checkpoints, staged rows along K and V
  int64_t checkpoints, blocks, history, gradient, k, decay, folded, v, q, grad_o, dq, dk, dv, dg, total;
};

Layout layout(const Sizes& s, const Tiling& columns, bool convert) {
  Layout at = {};
  at.state = s.V * columns.part_width();
  at.k_pitch = columns.part_width();
  at.v_pitch = round_up(max<int64_t>(s.V, 1), kLanes);
  const int64_t length = ceil_div(s.tokens, kBlock), heads = kBlock * s.group;
  for (at.chunk = 1; at.chunk * at.chunk < length;) ++at.chunk;
  at.checkpoints = reserve(&at.total, max<int64_t>(1, ceil_div(length, at.chunk)) * at.state);
  at.blocks = reserve(&at.total, (at.chunk - 1) * at.state);
  at.history = reserve(&at.total, kBlock * s.V * columns.width);
  at.gradient = reserve(&at.total, at.state);
  at.k = reserve(&at.total, kBlock * at.k_pitch);
  at.decay = reserve(&at.total, kBlock * at.k_pitch);
  at.folded = reserve(&at.total, (kBlock + 1) * at.k_pitch);
  at.dk = reserve(&at.total, kBlock * at.k_pitch);
  at.dg = reserve(&at.total, kBlock * at.k_pitch);
  at.v = reserve(&at.total, kBlock * at.v_pitch);
  at.dv = reserve(&at.total, kBlock * at.v_pitch);
  at.q = reserve(&at.total, convert ? heads * round_up(s.K, kLanes) : 0);
  at.grad_o = reserve(&at.total, convert ? heads * at.v_pitch : at.v_pitch);
  at.dq = reserve(&at.total, convert ? heads * columns.width : 0);
  return at;
}

int64_t plan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& initial_state,
             const Tensor& cu_seqlens, const Tensor& grad_o, const Tensor& grad_final_state, double, bool) {
  const Sizes s = check_backward(q, k, v, g, initial_state, cu_seqlens, grad_o, grad_final_state);
  const Tiling columns = tile(s.K, s.group, s.sequences * s.heads);
  const int64_t scratch = slots_of(s, columns) * layout(s, columns, q.dtype != DType::f32).total;
  return 4 * (scratch + shares(s, columns, s.V) + shares(s, columns, g.ndim == 3));
}

struct Backward {
  Sizes size;
  Tiling columns;
  Layout at;
  const Tensor &q, &k, &v, &g, &grad_o, &grad_q, &grad_k;
  float scale;

  struct Task {
    int64_t n, head, first, count;
    float* scratch;
    Tensor grad_v, grad_g;  // the outputs, or the part's shares
    float* at(int64_t offset) const { return scratch + offset; }
  };

  // f(tile's column, vectors, width)
  template <class F> void for_each_tile(const Task& task, const F& f) const {
    for (int64_t i = 0; i < task.count; i += columns.width) {
      const int64_t width = min(columns.width, task.count - i);
      f(i, ceil_div(width, kLanes), width);
    }
  }

  // f(element of x [N, H, K, V], of the task's state) for every element.
  template <class T, class F> void for_each_element(const Task& task, const Tensor& x, float* state, const F& f) const {
    T* from = const_cast<T*>(element<T>(x, task.n, task.head, task.first));
    for_each_tile(task, [&](int64_t i, int64_t vectors, int64_t width) {
      for (int64_t j = 0; j < size.V; ++j)
        for (int64_t c = 0; c < width; ++c)
          f(from[(i + c) * x.stride[2] + j], state[size.V * i + j * vectors * kLanes + c]);
    });
  }

  void load_state(const Task& task, const Tensor& x, float* state) const {
    zero_bytes(state, at.state * 4);
    if (!defined(x)) return;
    with_float(x.dtype, [&](auto* type) {
      using T = typename ElementOf<decltype(type)>::type;
      for_each_element<T>(task, x, state, [](T& from, float& to) { to = to_float(from); });
    });
  }

  void store_state(const Task& task, const Tensor& x, float* state) const {
    with_float(x.dtype, [&](auto* type) {
      using T = typename ElementOf<decltype(type)>::type;
      for_each_element<T>(task, x, state, [](T& to, float& from) { to = from_float<T>(from); });
    });
  }

  void stage(const Task& task, const Sequence& here, int64_t count) const {
    stage_rows<false>(k, here, count, task.head, task.first, task.count, task.at(at.k), at.k_pitch);
    stage_rows<true>(g, here, count, task.head, task.first, task.count, task.at(at.decay), at.k_pitch);
    stage_rows<false>(v, here, count, task.head, 0, size.V, task.at(at.v), at.v_pitch);
  }

  // The state past a full block.
  void skip(const Task& task, const Sequence& here, const float* from, float* to) const {
    stage(task, here, kBlock);
    for (int64_t i = 0; i < task.count; i += kLanes) {
      vf total = set(1.0f);
      for (int64_t t = kBlock - 1; t >= 0; --t) {
        store(task.at(at.folded) + t * at.k_pitch + i, load(task.at(at.k) + t * at.k_pitch + i) * total);
        total *= load(task.at(at.decay) + t * at.k_pitch + i);
      }
      store(task.at(at.folded) + kBlock * at.k_pitch + i, total);
    }
    for_each_tile(task, [&](int64_t i, int64_t vectors, int64_t) {
      for (int64_t c = 0; c < vectors * kLanes; c += kLanes)
        skip_block(size.V, from + size.V * i + c, to + size.V * i + c, vectors * kLanes, task.at(at.v), at.v_pitch,
                   task.at(at.folded) + i + c, at.k_pitch);
    });
  }

  void reverse(const Reverse& p, int64_t t, int64_t vectors) const {
    for_each_piece(size.group, [&](int64_t head, auto heads) {
      with_constant<2>(vectors, [&](auto nv) {
        if (head + heads.value == size.group)
          reverse_heads<decltype(heads)::value, decltype(nv)::value, true>(p, t, head);
        else
          reverse_heads<decltype(heads)::value, decltype(nv)::value, false>(p, t, head);
      });
    });
  }

  // One tile of one block: dq and the states forwards, then the rest backwards. `before` is the tile before the block.
  void tile_block(const Task& task, const Sequence& here, int64_t count, const HeadRows& queries, const HeadRows& grads,
                  const float* before, int64_t i, int64_t vectors, int64_t width) const {
    const int64_t pitch = vectors * kLanes, tile = size.V * pitch;
    float *history = task.at(at.history), *kt = task.at(at.k) + i, *decay = task.at(at.decay) + i;
    const HeadRows dq = output_heads(size, grad_q, here, task.head, task.first + i, columns.width, task.at(at.dq));
    const auto state_before = [&](int64_t t) { return t ? history + (t - 1) * tile : before; };
    for (int64_t t = 0; t < count; ++t) {
      if (grads.token && i == 0 && t + 1 < count) prefetch_heads(grads, t + 1, size.group, 0, size.V);
      const float *row = task.at(at.v) + t * at.v_pitch, *column = kt + t * at.k_pitch, *gate = decay + t * at.k_pitch;
      pass_group<true>({size.V, state_before(t), history + t * tile, pitch, row, column, gate, grads, dq, width, scale},
                       t, size.group, vectors);
    }
    store_heads(size, grad_q, here, count, task.head, task.first + i, width, dq);
    const HeadRows q_tile = {queries.data + task.first + i, queries.token, queries.head};
    for (int64_t t = count - 1; t >= 0; --t) {
      if (t > 0) prefetch_heads(q_tile, t - 1, size.group, 0, width);
      reverse({size.V, width, state_before(t), task.at(at.v) + t * at.v_pitch, kt + t * at.k_pitch,
               decay + t * at.k_pitch, task.at(at.gradient) + size.V * i, task.at(at.dv) + t * at.v_pitch,
               task.at(at.dk) + t * at.k_pitch + i, task.at(at.dg) + t * at.k_pitch + i, q_tile, grads, scale},
              t, vectors);
    }
  }

  void block(const Task& task, const Sequence& here, const float* before) const {
    const int64_t count = min(kBlock, here.end - here.begin);
    stage(task, here, count);
    const HeadRows queries = stage_heads(size, q, here, count, task.head, size.K, task.at(at.q));
    HeadRows grads = {task.at(at.grad_o), 0, 0};
    if (defined(grad_o)) grads = stage_heads(size, grad_o, here, count, task.head, size.V, task.at(at.grad_o));
    zero_bytes(task.at(at.dv), kBlock * at.v_pitch * 4);
    for_each_tile(task, [&](int64_t i, int64_t vectors, int64_t width) {
      tile_block(task, here, count, queries, grads, before + size.V * i, i, vectors, width);
    });
    store_rows(grad_k, here, count, task.head, task.first, task.count, task.at(at.dk), at.k_pitch);
    store_rows(task.grad_v, here, count, task.head, 0, size.V, task.at(at.dv), at.v_pitch);
    float* dg = task.at(at.dg);
    if (g.ndim == 4) return store_rows(task.grad_g, here, count, task.head, task.first, task.count, dg, at.k_pitch);
    for (int64_t t = 0; t < count; ++t, dg += at.k_pitch) {
      vf total = zero();
      for (int64_t i = 0; i < task.count; i += kLanes) total += load(dg + i, task.count - i);
      dg[0] = sum(total);
    }
    store_rows(task.grad_g, here, count, task.head, 0, 1, task.at(at.dg), at.k_pitch);
  }

  void run(const Sequence& sequence, const Task& task, const Tensor& initial_state, const Tensor& grad_final_state,
           const Tensor& grad_initial_state) const {
    const int64_t length = ceil_div(sequence.end - sequence.begin, kBlock);
    const auto at_block = [&](int64_t b) {
      return Sequence{sequence.batch, sequence.begin + b * kBlock, sequence.end};
    };
    const auto checkpoint = [&](int64_t c) { return task.at(at.checkpoints) + c * at.state; };
    zero_bytes(task.at(at.grad_o), at.v_pitch * 4);
    load_state(task, grad_final_state, task.at(at.gradient));
    load_state(task, initial_state, checkpoint(0));
    for (int64_t b = 0; b < (ceil_div(length, at.chunk) - 1) * at.chunk; ++b) {
      const int64_t c = b / at.chunk;
      skip(task, at_block(b), checkpoint(b % at.chunk ? c + 1 : c), checkpoint(c + 1));
    }
    for (int64_t c = ceil_div(length, at.chunk) - 1; c >= 0; --c) {
      const int64_t first = c * at.chunk, count = min(at.chunk, length - first);
      const auto before = [&](int64_t b) { return b ? task.at(at.blocks) + (b - 1) * at.state : checkpoint(c); };
      for (int64_t b = 0; b + 1 < count; ++b) skip(task, at_block(first + b), before(b), before(b + 1));
      for (int64_t b = count - 1; b >= 0; --b) block(task, at_block(first + b), before(b));
    }
    if (defined(initial_state)) store_state(task, grad_initial_state, task.at(at.gradient));
  }
};

void launch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& initial_state,
            const Tensor& cu_seqlens, const Tensor& grad_o, const Tensor& grad_final_state, double scale, bool,
            const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v, const Tensor& grad_g,
            const Tensor& grad_initial_state, const Launch& launch) {
  const Sizes s = check_inputs(q, k, v, g, initial_state, cu_seqlens);
  if (defined(cu_seqlens)) check_offsets("cu_seqlens", cu_seqlens, s.tokens);
  const Tiling columns = tile(s.K, s.group, s.sequences * s.heads);
  const Layout at = layout(s, columns, q.dtype != DType::f32);
  const Backward backward = {s, columns, at, q, k, v, g, grad_o, grad_q, grad_k, static_cast<float>(scale)};
  zero_tail(s, cu_seqlens, grad_q, launch.num_threads);
  zero_tail(s, cu_seqlens, grad_k, launch.num_threads);
  zero_tail(s, cu_seqlens, grad_v, launch.num_threads);
  zero_tail(s, cu_seqlens, grad_g, launch.num_threads);
  float* workspace = reinterpret_cast<float*>(launch.workspace);
  float* v_shares = workspace + slots_of(s, columns) * at.total;
  float* g_shares = v_shares + shares(s, columns, s.V);
  const int64_t rows = s.batch * s.tokens * s.heads;
  const bool share = columns.parts > 1, share_gate = share && g.ndim == 3;
  const int threads = static_cast<int>(min<int64_t>(launch.num_threads, slots_of(s, columns)));
  parallel_for(s.sequences * s.heads * columns.parts, threads, [&](int64_t index, int thread) {
    const int64_t part = index % columns.parts, head = index / columns.parts % s.heads;
    const int64_t n = index / columns.parts / s.heads;
    backward.run(sequence_of(s, cu_seqlens, n),
                 {n, head, columns.first(part), columns.count(part), workspace + thread * at.total,
                  share ? share_of(grad_v, v_shares, rows * s.V, part) : grad_v,
                  share_gate ? share_of(grad_g, g_shares, rows, part) : grad_g},
                 initial_state, grad_final_state, grad_initial_state);
  });
  const int64_t used = defined(cu_seqlens) ? index_at(cu_seqlens, s.sequences) * s.heads : rows;
  if (share) sum_shares(v_shares, columns.parts, rows * s.V, used * s.V, grad_v, launch.num_threads);
  if (share_gate) sum_shares(g_shares, columns.parts, rows, used, grad_g, launch.num_threads);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(gated_linear_attention_backward, 1, plan, launch)
