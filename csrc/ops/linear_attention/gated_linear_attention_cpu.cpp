// gated_linear_attention: the recurrence over state tiles in L1, for all query heads of a key/value head at once.
#include "gated_linear_attention_rows_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// One task's slice of the workspace, in floats.
struct Layout {
  int64_t state, k, v, decay, q, o, total;
};

Layout layout(const Sizes& s, const Tiling& columns, bool convert) {
  Layout at = {};
  const int64_t pitch = round_up(s.K, kLanes);
  at.state = reserve(&at.total, s.K * columns.part_width());
  at.k = reserve(&at.total, kBlock * pitch);
  at.v = reserve(&at.total, kBlock * columns.part_width());
  at.decay = reserve(&at.total, kBlock * pitch);
  at.q = reserve(&at.total, convert ? kBlock * s.group * pitch : 0);
  at.o = reserve(&at.total, convert ? kBlock * s.group * columns.width : 0);
  return at;
}

int64_t plan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& initial_state,
             const Tensor& cu_seqlens, double, bool) {
  const Sizes s = check_inputs(q, k, v, g, initial_state, cu_seqlens);
  const Tiling columns = tile(s.V, s.group, s.sequences * s.heads);
  return slots_of(s, columns) * layout(s, columns, q.dtype != DType::f32).total * 4;
}

void prefetch_heads_l2(const HeadRows& x, int64_t t, int64_t group, int64_t first, int64_t width) {
  for (int64_t h = 0; h < group; ++h)
    for (int64_t i = first; i < first + width; i += 16) prefetch_l2(x.row(t, h) + i);
}

struct Forward {
  Sizes size;
  Tiling columns;
  Layout at;
  const Tensor &q, &k, &v, &g, &initial_state, &o, &final_state;
  float scale;
  bool output_final_state;

  struct Task {
    int64_t n, head, first, count;
    float* scratch;
  };

  // f(row of x, columns, the tile's row) for every row of the task's part of the state.
  template <class F> void for_each_row(const Task& task, const F& f) const {
    for (int64_t j = 0; j < task.count; j += columns.width) {
      const int64_t count = min(columns.width, task.count - j), pitch = round_up(count, kLanes);
      float* tile = task.scratch + at.state + size.K * j;
      for (int64_t i = 0; i < size.K; ++i)
        for (int64_t c = 0; c < count; c += kLanes) f(i, task.first + j + c, count - c, tile + i * pitch + c);
    }
  }

  void load_state(const Task& task) const {
    if (!defined(initial_state))
      return for_each_row(task, [](int64_t, int64_t, int64_t, float* to) { store(to, zero()); });
    with_float(initial_state.dtype, [&](auto* type) {
      using T = typename ElementOf<decltype(type)>::type;
      const int64_t stride = initial_state.stride[2];
      const T* x = element<T>(initial_state, task.n, task.head, 0);
      for_each_row(task, [&](int64_t i, int64_t j, int64_t n, float* to) { store(to, load(x + i * stride + j, n)); });
    });
  }

  void store_state(const Task& task) const {
    float* x = static_cast<float*>(final_state.data) + (task.n * size.heads + task.head) * size.K * size.V;
    for_each_row(task, [&](int64_t i, int64_t j, int64_t n, float* from) { store(x + i * size.V + j, load(from), n); });
  }

  // A task has a part of the columns of one head's state, through a whole sequence. In its slice of the workspace:
  //
  //   state       one tile [K][width] after another, width being one or two vectors
  //   k, decay, v [16 tokens][K], [16][K] and [16][the part's columns] of a block
  //   q, o        [16][group][K] of a block, [16][group][width] of a tile; float32 is read and written in place instead
  //
  // Tokens of a block are staged once; then each tile goes through all of them before the next tile does. Tasks write
  // nothing that another reads: the only barrier is the end of parallel_for.
  void block(const Task& task, const Sequence& here, int64_t count, int64_t left) const {
    const int64_t pitch = round_up(size.K, kLanes);
    float *rows = task.scratch + at.k, *values = task.scratch + at.v, *decay = task.scratch + at.decay;
    stage_rows<false>(k, here, count, task.head, 0, size.K, rows, pitch);
    stage_rows<true>(g, here, count, task.head, 0, size.K, decay, pitch);
    stage_rows<false>(v, here, count, task.head, task.first, task.count, values, columns.part_width());
    const HeadRows queries = stage_heads(size, q, here, count, task.head, size.K, task.scratch + at.q);
    const bool ahead = q.dtype == DType::f32;
    const int64_t share = round_up(ceil_div(size.K * columns.width, max<int64_t>(1, task.count)), 16);
    for (int64_t j = 0; j < task.count; j += columns.width) {
      const int64_t width = min(columns.width, task.count - j), vectors = ceil_div(width, kLanes);
      float* tile = task.scratch + at.state + size.K * j;
      const HeadRows out = output_heads(size, o, here, task.head, task.first + j, columns.width, task.scratch + at.o);
      const int64_t share_begin = j / columns.width * share;
      for (int64_t t = 0; t < count; ++t) {
        if (ahead && t + 1 < left) prefetch_heads(queries, t + 1, size.group, 0, size.K);
        if (ahead && t + kBlock < left)
          prefetch_heads_l2(queries, t + kBlock, size.group, share_begin, min(share, size.K - share_begin));
        if (t + 2 < count)
          for (int64_t h = 0; h < size.group; ++h)
            for (int64_t i = 0; i < width; i += 16) prefetch_write(out.row(t + 2, h) + i);
        const float* column = values + t * columns.part_width() + j;
        const Pass pass = {size.K, tile,  tile, vectors * kLanes, rows + t * pitch, column, decay + t * pitch, queries,
                           out,    width, scale};
        pass_group<false>(pass, t, size.group, vectors);
      }
      store_heads(size, o, here, count, task.head, task.first + j, width, out);
    }
  }

  void run(const Sequence& sequence, const Task& task) const {
    load_state(task);
    for (int64_t t = sequence.begin; t < sequence.end; t += kBlock) {
      const Sequence here = {sequence.batch, t, sequence.end};
      block(task, here, min(kBlock, sequence.end - t), sequence.end - t);
    }
    if (output_final_state) store_state(task);
  }
};

void launch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& initial_state,
            const Tensor& cu_seqlens, double scale, bool output_final_state, const Tensor& o, const Tensor& final_state,
            const Launch& launch) {
  const Sizes s = check_inputs(q, k, v, g, initial_state, cu_seqlens);
  if (defined(cu_seqlens)) check_offsets("cu_seqlens", cu_seqlens, s.tokens);
  const Tiling columns = tile(s.V, s.group, s.sequences * s.heads);
  const Layout at = layout(s, columns, q.dtype != DType::f32);
  const Forward forward = {
      s, columns, at, q, k, v, g, initial_state, o, final_state, static_cast<float>(scale), output_final_state};
  zero_tail(s, cu_seqlens, o, launch.num_threads);
  const int threads = static_cast<int>(min<int64_t>(launch.num_threads, slots_of(s, columns)));
  // the parts of a head are neighbours: threads that run them together read q from memory once
  parallel_for(s.sequences * s.heads * columns.parts, threads, [&](int64_t index, int thread) {
    const int64_t part = index % columns.parts, head = index / columns.parts % s.heads;
    const int64_t n = index / columns.parts / s.heads;
    float* scratch = reinterpret_cast<float*>(launch.workspace) + thread * at.total;
    forward.run(sequence_of(s, cu_seqlens, n), {n, head, columns.first(part), columns.count(part), scratch});
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(gated_linear_attention, 1, plan, launch)
