// gated_linear_attention: chunks of one matrix tile of tokens, one pass over the time axis with the state in registers.
//
// A block serves one key/value head of a sequence with all its query heads, and kColumns columns of the values. For
// every chunk it adds what the state before the chunk gives each query, decayed until it, to what the chunk's own
// tokens give (their scores come from a kernel of their own), then advances the state. Too few heads for a whole device
// split the time axis into segments: their contributions to the state are computed from zero, then chained.
#include "gated_linear_attention_outputs_gpu.h"
#include "gated_linear_attention_recurrence_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kWantedBlocks = 256, kLeastChunks = 8, kMostSegments = 64;  // kLeastChunks a segment
constexpr int kMostChannels = 256;  // what registers hold; more are served one token at a time

// Blocks that registers should leave room for beside each other: one where it would take spills, which it does where
// each column tile is one wide wavefront's.
template <class T, int kRowTiles> constexpr int kResident =
    sizeof(T) == 2 && kRowTiles <= 8 && Place::kRowWaves > 1 ? 2 : 1;

// How many segments each sequence is split into; lengths of packed sequences are not known here.
int segments_of(const Sizes& s) {
  const int64_t blocks = s.sequences * s.heads * ceil_div(s.V, kColumns);
  if (blocks == 0 || s.K == 0) return 1;
  const int64_t chunks = ceil_div(s.tokens * s.batch, kChunk * s.sequences);
  const int64_t segments = min(min(kWantedBlocks / blocks, chunks / kLeastChunks), kMostSegments);
  return static_cast<int>(max<int64_t>(segments, 1));
}

// What a block of a grid over [n][head][segments][parts] works on.
struct Task {
  Head at;
  Sequence sequence;
  int segment;
  int64_t chunk, end;

  template <class T> SBHAL_INLINE Task(const Problem<T>& p, int segments) {
    const int parts = static_cast<int>(p.parts), heads = static_cast<int>(p.size.heads);
    int index = static_cast<int>(blockIdx.x);
    const int column = index % parts * kColumns;
    index /= parts;
    segment = index % segments;
    index /= segments;
    at = {index / heads, index % heads, column, min(static_cast<int>(p.size.V) - column, kColumns)};
    sequence = sequence_of(p.size.tokens, p.cu_seqlens, at.n);
    const int64_t first = first_chunk(sequence), last = chunks_end(sequence);
    const int64_t each = ceil_div(last - first, p.segments);
    chunk = min(first + segment * each, last), end = min(chunk + each, last);
  }
  // its number over [n][head][segment]
  template <class T> SBHAL_INLINE int64_t place(const Problem<T>& p) const {
    return (at.n * p.size.heads + at.head) * p.segments + segment;
  }
  template <class T> SBHAL_INLINE float* start(const Problem<T>& p) const {
    return p.starts + place(p) * p.size.K * p.size.V + at.column;
  }
};

// ---- segments: what each adds to the state, for all but the last

// A block: one segment of a key/value head, 64 columns of v. In registers the state [K][64], from zero, and in thread
// c < 128 the decays of channels c and c + 128 over the segment; in shared memory, as advance() needs them, values
// [64][16 tokens], keys [128][16 tokens] and total [128]. A chunk: stage values, advance. Both of advance()'s barriers
// serve the values too, so there is no other. At the end the state goes to starts, the decays, if these are the head's
// first columns, to decays.
template <class T, int kRowTiles> __global__ void SBHAL_BOUNDS(kThreads, (kResident<T, kRowTiles>))
    contributions_kernel(Problem<T> p) {
  using E = typename Parts<T>::Element;
  SBHAL_SHARED(E, values, Values<T>::kSize);
  SBHAL_SHARED(E, keys, Keys<T>::kSize);
  SBHAL_SHARED(float, total, kStaged);
  const Task task(p, p.segments - 1);
  const Gates<T> gates(p.g, task.sequence.batch, task.at.head);
  const int K = static_cast<int>(p.size.K), thread = static_cast<int>(threadIdx.x);

  using Tiles = State<T, kRowTiles>;
  Tiles state;
  state.zero();
  float decay[Tiles::kStages];
#pragma unroll
  for (float& d : decay) d = 1;
  for (int64_t c = task.chunk; c < task.end; ++c) {
    const Chunk chunk = chunk_of(task.sequence, c);
    Values<T>::stage(p.v, task.at, chunk, values);
    state.advance(p.k, gates, task.at.head, chunk, K, keys, total, values, [&](int stage) {
      if (thread < kStaged) decay[stage] *= total[thread];
    });
  }
  state.store(task.at, task.start(p), p.size.V, K);
#pragma unroll
  for (int stage = 0; stage < Tiles::kStages; ++stage) {
    const int d = stage * kStaged + thread;
    if (task.at.column == 0 && thread < kStaged && d < K) p.decays[task.place(p) * p.size.K + d] = decay[stage];
  }
}

// Contributions become the states at the segments' starts, in place. A thread has one element of [n][head][K][V] and
// walks along the segments, the state in a register. Nothing is shared: no barrier.
template <class T> __global__ void __launch_bounds__(kThreads) chain_kernel(Problem<T> p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, size = p.size.K * p.size.V;
  if (index >= p.size.sequences * p.size.heads * size) return;
  const int64_t row = index / p.size.V, d = row % p.size.K, place = index / size * p.segments;
  const Tensor& initial = p.initial_state;
  float state = 0;
  if (defined(initial)) {
    const int64_t n = index / size / p.size.heads, head = index / size % p.size.heads;
    state =
        float_at(initial, n * initial.stride[0] + head * initial.stride[1] + d * initial.stride[2] + index % p.size.V);
  }
  float* start = p.starts + place * size + index % size;
  const float* decay = p.decays + place * p.size.K + d;
  for (int segment = 0; segment < p.segments; ++segment) {
    const bool last = segment == p.segments - 1;
    const float contribution = last ? 0 : start[segment * size];
    start[segment * size] = state;
    if (!last) state = decayed(state, decay[segment * p.size.K]) + contribution;
  }
}

// ---- the pass over the chunks

// A block: one segment of a key/value head with all its query heads, 64 columns of v.
//
//   registers  the state [K][64] from chunk to chunk, and what Outputs::run holds of one chunk
//   values     [64][16 tokens]
//   slab       in turn decayed queries [kHeads * 16 tokens][32 channels] and the state's columns [64][32]; scores
//              [kHeads * 16][16]; outputs [kHeads * 16][64]; decayed keys [128][16 tokens]
//   decay      in turn [16 tokens][128 channels] products from the chunk's start, and total [128]
//
// A chunk: stage values, Outputs::run, advance. Each of the two leaves all shared memory but the values free, behind a
// barrier; the values are first read behind run's first barrier, and free after advance's last.
template <class T, int kRowTiles> __global__ void SBHAL_BOUNDS(kThreads, (kResident<T, kRowTiles>))
    outputs_kernel(Problem<T> p) {
  using E = typename Parts<T>::Element;
  SBHAL_SHARED(E, values, Values<T>::kSize);
  SBHAL_SHARED(E, slab, Slab<T>::kSize);
  SBHAL_SHARED(float, decay, kChunk* Slab<T>::kDecayPitch);
  const Task task(p, p.segments);
  const Head& at = task.at;
  const Gates<T> gates(p.g, task.sequence.batch, at.head);
  const int K = static_cast<int>(p.size.K);

  State<T, kRowTiles> state;
  const Tensor& initial = p.initial_state;
  state.zero();
  if (p.segments > 1)
    state.load(at, task.start(p), p.size.V, K);
  else if (defined(initial))
    state.each(at, K, [&](int row, int column, float& element) {
      element = float_at(initial, at.n * initial.stride[0] + at.head * initial.stride[1] + row * initial.stride[2] +
                                      at.column + column);
    });
  for (int64_t c = task.chunk; c < task.end; ++c) {
    const Chunk chunk = chunk_of(task.sequence, c);
    Values<T>::stage(p.v, at, chunk, values);
    Outputs<T>{p, at, chunk, slab, slab + Slab<T>::kQueries, decay}.run(state, gates, values);
    state.advance(p.k, gates, at.head, chunk, K, slab, decay, values, [](int) {});
  }
  if (p.output_final_state && task.segment == p.segments - 1) {
    const int64_t place = at.n * p.size.heads + at.head;
    state.store(at, static_cast<float*>(p.final_state.data) + place * p.size.K * p.size.V + at.column, p.size.V, K);
  }
}

// ---- host

struct Workspace {
  int segments;
  int64_t starts, decays, bytes;
};

template <class T> Workspace workspace_of(const Sizes& s) {
  Workspace w = {segments_of(s), 0, 0, 0};
  const int64_t states = s.sequences * s.heads * s.K * static_cast<int64_t>(sizeof(float));
  if (s.K > kMostChannels) {
    w.bytes = states * s.V;
    return w;
  }
  w.starts = round_up(Scores<T>::bytes(s), 256);
  w.decays = w.starts + (w.segments > 1 ? round_up(states * s.V * w.segments, 256) : 0);
  w.bytes = w.decays + (w.segments > 1 ? states * w.segments : 0);
  return w;
}

int64_t plan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& initial_state,
             const Tensor& cu_seqlens, double, bool) {
  const Sizes s = check_inputs(q, k, v, g, initial_state, cu_seqlens);
  int64_t bytes = 0;
  with_float(q.dtype, [&](auto* type) { bytes = workspace_of<typename ElementOf<decltype(type)>::type>(s).bytes; });
  return bytes;
}

template <class T, int kRowTiles> void launch_tiles(const Problem<T>& p, const Launch& launch) {
  const int64_t blocks = p.size.sequences * p.size.heads * p.parts;
  launch_kernel("gated_linear_attention scores", scores_kernel<T>, p.size.batch * p.size.heads * p.scores.chunks,
                kScoreThreads, launch, p.q, p.k, p.g, p.scores, static_cast<int>(p.size.K), p.aligned_q);
  if (p.segments > 1) {
    launch_kernel("gated_linear_attention contributions", contributions_kernel<T, kRowTiles>, blocks * (p.segments - 1),
                  kThreads, launch, p);
    launch_kernel("gated_linear_attention chain", chain_kernel<T>,
                  ceil_div(p.size.sequences * p.size.heads * p.size.K * p.size.V, kThreads), kThreads, launch, p);
  }
  launch_kernel("gated_linear_attention", outputs_kernel<T, kRowTiles>, blocks * p.segments, kThreads, launch, p);
}

void launch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& initial_state,
            const Tensor& cu_seqlens, double scale, bool output_final_state, const Tensor& o, const Tensor& final_state,
            const Launch& launch) {
  const Sizes s = check_inputs(q, k, v, g, initial_state, cu_seqlens);
  zero_tail(cu_seqlens, o, launch);
  with_float(q.dtype, [&](auto* type) {
    using T = typename ElementOf<decltype(type)>::type;
    const Workspace w = workspace_of<T>(s);
    const Scores<T> scores = {reinterpret_cast<typename Scores<T>::E*>(launch.workspace), s.heads,
                              ceil_div(s.tokens, kChunk), s.group};
    const Problem<T> p = {q,
                          k,
                          v,
                          g,
                          initial_state,
                          cu_seqlens,
                          o,
                          final_state,
                          s,
                          scores,
                          static_cast<int>(ceil_div(s.V, kColumns)),
                          w.segments,
                          reinterpret_cast<float*>(launch.workspace + w.starts),
                          reinterpret_cast<float*>(launch.workspace + w.decays),
                          static_cast<float>(scale),
                          output_final_state,
                          rows_aligned(q, sizeof(T)),
                          rows_aligned(o, sizeof(T))};
    if (s.K <= 64)
      launch_tiles<T, 4>(p, launch);
    else if (s.K <= 128)
      launch_tiles<T, 8>(p, launch);
    else if (s.K <= kMostChannels)
      launch_tiles<T, 16>(p, launch);
    else
      launch_recurrence<T>({q, k, v, g, initial_state, cu_seqlens, o, final_state, s,
                            reinterpret_cast<float*>(launch.workspace), static_cast<float>(scale), output_final_state},
                           launch);
  });
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

SBHAL_KERNEL(gated_linear_attention, 1, plan, launch)
