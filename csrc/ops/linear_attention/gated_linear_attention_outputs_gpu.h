// The outputs of one chunk of gated linear attention: what the state before the chunk gives its queries, decayed until
// them, in slabs of channels that fit into shared memory, plus what the chunk's own tokens give by their scores.
#pragma once
#include "gated_linear_attention_scores_gpu.h"
#include "gated_linear_attention_state_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

template <class T> struct Problem {
  Tensor q, k, v, g, initial_state, cu_seqlens, o, final_state;
  Sizes size;
  Scores<T> scores;
  int parts, segments;     // of the columns, of the time axis
  float *starts, *decays;  // the segments' states [n][head][segment][K][V] and decays [n][head][segment][K]
  float scale;
  bool output_final_state, aligned_q, aligned_o;  // rows start on 16 bytes
};

// Shared memory of a slab: kChannels of the decayed queries [kHeads * kChunk] and of the state's columns; later
// the scores in the queries' place, then the outputs; then the decayed keys.
template <class T> struct Slab {
  using E = typename Parts<T>::Element;
  static constexpr int kChannels = 32, kPitch = kChannels + 8, kOutputPitch = kColumns + 8;
  static constexpr int kHeads = kBrainFloat<T> ? 8 : 4, kRows = kHeads * kChunk;
  static constexpr int kQueryPlane = kRows * kPitch, kStatePlane = kColumns * kPitch;
  static constexpr int kQueries = Parts<T>::kInput * kQueryPlane, kStates = Parts<T>::kSum * kStatePlane;
  static constexpr int kSize = max(kQueries + kStates, max(Keys<T>::kSize, kRows* kOutputPitch));
  static constexpr int kDecayPitch = kStaged + 4;
};

// Sums of the outputs, [head][token] by the wavefront's column tile; heads are dealt like row tiles of the state.
template <class T> struct Sums {
  using E = typename Parts<T>::Element;
  static constexpr int kOwn = Slab<T>::kHeads / Place::kRowWaves;
  MmaTile<E> tile[kOwn];

  SBHAL_INLINE void zero() {
#pragma unroll
    for (auto& t : tile) t.zero();
  }
  // f(tile, head) for the heads there are.
  template <class F> SBHAL_INLINE void each(int heads, const F& f) {
#pragma unroll
    for (int own = 0; own < kOwn; ++own)
      if (Place::row_tile(own) < heads) f(tile[own], Place::row_tile(own));
  }
};

// What a thread stages of the queries of a slab, read one slab ahead.
template <class T> struct Queries {
  using S = Slab<T>;
  static constexpr int kAcross = S::kChannels / 8, kJobs = S::kRows * kAcross / kThreads;
  T x[kJobs][8];

  SBHAL_INLINE static int row(int job) { return (job * kThreads + static_cast<int>(threadIdx.x)) / kAcross; }
  SBHAL_INLINE static int channel() { return static_cast<int>(threadIdx.x) % kAcross * 8; }

  // Channels from `first` on of `heads` query heads; zeros where there is none.
  SBHAL_INLINE void load(const Problem<T>& p, const Chunk& chunk, int head, int heads, int first) {
#pragma unroll
    for (int job = 0; job < kJobs; ++job) {
      const int token = row(job) % kChunk, h = row(job) / kChunk, d = first + channel();
      const bool there = h < heads && chunk.has(token);
      load_part(row_of<const T>(p.q, chunk.batch, chunk.first + token, head + h) + d,
                there ? static_cast<int>(p.size.K) - d : 0, p.aligned_q, x[job]);
    }
  }
  // decay: of the slab's first channel at the chunk's first token
  SBHAL_INLINE void store(const float* decay, typename S::E* to) const {
#pragma unroll
    for (int job = 0; job < kJobs; ++job) {
      float decayed_query[8];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        decayed_query[i] = to_float(x[job][i]) * decay[row(job) % kChunk * S::kDecayPitch + channel() + i];
      store_parts<Parts<T>::kInput>(decayed_query, to + row(job) * S::kPitch + channel(), S::kQueryPlane);
    }
  }
};

template <class T> struct Outputs {
  using E = typename Parts<T>::Element;
  using S = Slab<T>;

  const Problem<T>& p;
  const Head at;
  const Chunk chunk;
  E *const queries, *const states;
  float* const decay;

  SBHAL_INLINE void stage_decays(const Gates<T>& gates, int stage) const {
    const int channel = HalfDecays::channel(), d = stage * kStaged + channel;
    HalfDecays prefix(gates, chunk, d, d < p.size.K);
    prefix.prefix();
#pragma unroll
    for (int i = 0; i < kHalf; ++i)
      decay[(HalfDecays::half() * kHalf + i) * S::kDecayPitch + channel] = prefix.alpha[i];
  }

  // The slab's row tiles of the state, transposed.
  template <int kOwn> SBHAL_INLINE void stage_states(MmaTile<E>* own) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      E* const to = states + Place::column() * S::kPitch + Place::row_tile(i) * 16;
      own[i].each([&](int row, int column, float& element) {
        store_parts<Parts<T>::kSum>(element, to + column * S::kPitch + row, S::kStatePlane);
      });
    }
  }

  SBHAL_INLINE void add_states(Sums<T>& sums, int heads) const {
#pragma unroll
    for (int c = 0; c < S::kChannels; c += 16) {
      const Operand<E> columns = {states + Place::column() * S::kPitch + c, S::kPitch, S::kStatePlane};
      sums.each(heads, [&](MmaTile<E>& sum, int head) {
        multiply_parts<Parts<T>::kSum, Parts<T>::kInput, Parts<T>::kSum, Stored::rows, Stored::columns>(
            sum, Operand<E>{queries + head * kChunk * S::kPitch + c, S::kPitch, S::kQueryPlane}, columns);
      });
    }
  }

  // Scores with tokens before the sequence's are left out: they may not be finite.
  SBHAL_INLINE void stage_scores(int first_head, int heads) const {
    const E* from = p.scores.at(chunk.batch, at.head, chunk.first / kChunk) + first_head * kScores;
    static_assert(S::kRows * 2 <= kThreads, "each thread stages half a row");
    const int j = static_cast<int>(threadIdx.x) % 2 * 8, row = static_cast<int>(threadIdx.x) / 2;
    if (row >= heads * kChunk) return;
#pragma unroll
    for (int part = 0; part < Parts<T>::kInput; ++part) {
      E x[8];
      read_aligned(from + part * p.scores.plane() + row * kChunk + j, x);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (j + i < chunk.begin) x[i] = from_float<E>(0);
      write_aligned(queries + part * S::kQueryPlane + row * S::kPitch + j, x);
    }
  }

  SBHAL_INLINE void add_scores(Sums<T>& sums, int heads, const E* values) const {
    sums.each(heads, [&](MmaTile<E>& sum, int head) {
      multiply_parts<Parts<T>::kSum, Parts<T>::kInput, Parts<T>::kInput, Stored::rows, Stored::columns>(
          sum, Operand<E>{queries + head * kChunk * S::kPitch, S::kPitch, S::kQueryPlane}, Values<T>::operand(values));
    });
  }

  // Through shared memory, so that rows are written whole.
  SBHAL_INLINE void store(Sums<T>& sums, int first_head, int heads) const {
    static_assert(sizeof(T) == sizeof(E), "outputs lie in the slab's memory");
    T* const outputs = reinterpret_cast<T*>(queries);
    const float scale = p.scale;
    sums.each(heads, [&](MmaTile<E>& sum, int head) {
      T* const to = outputs + head * kChunk * S::kOutputPitch + Place::column();
      sum.each([&](int row, int column, float& element) {
        to[row * S::kOutputPitch + column] = from_float<T>(scale * element);
      });
    });
    __syncthreads();
#pragma unroll 1
    for (int job = static_cast<int>(threadIdx.x); job < heads * kChunk * (kColumns / 8); job += kThreads) {
      const int c = job % (kColumns / 8) * 8, row = job / (kColumns / 8), token = row % kChunk;
      if (!chunk.has(token) || c >= at.columns) continue;
      T x[8];
      read_aligned(outputs + row * S::kOutputPitch + c, x);
      const int64_t head = at.head * p.size.group + first_head + row / kChunk;
      store_part(row_of<T>(p.o, chunk.batch, chunk.first + token, head) + at.column + c, at.columns - c, p.aligned_o,
                 x);
    }
  }

  // One chunk, kHeads query heads at a time. Registers: sums [kHeads * 16 tokens][64 columns] in the wavefronts' tiles,
  // and eight neighbouring channels of each row of queries that the thread stages, read one slab ahead.
  //
  //   each 128 channels    stage decays | each slab of 32: stage state and queries | add their product |
  //   then                 stage scores | add scores values | stage outputs | write rows |
  //
  // Every | is a barrier: it shows what was staged before it, or waits for its readers before something else takes the
  // place. The slab is the place of queries and state, then of the scores, then of the outputs; decays have their own.
  template <int kRowTiles>
  SBHAL_INLINE void run(State<T, kRowTiles>& state, const Gates<T>& gates, const E* values) const {
    using Tiles = State<T, kRowTiles>;
    constexpr int kSlabs = min(kRowTiles * 16, kStaged) / S::kChannels, kOwnSlab = Tiles::kOwnStaged / kSlabs;
    for (int first_head = 0; first_head < p.size.group; first_head += S::kHeads) {
      const int heads = min(static_cast<int>(p.size.group) - first_head, S::kHeads);
      const int query_head = at.head * static_cast<int>(p.size.group) + first_head;
      Sums<T> sums;
      sums.zero();
      Queries<T> ahead;
      ahead.load(p, chunk, query_head, heads, 0);
#pragma unroll
      for (int stage = 0; stage < Tiles::kStages; ++stage) {
        stage_decays(gates, stage);
        __syncthreads();
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) {
          const int first = stage * kStaged + slab * S::kChannels, next = first + S::kChannels;
          if (first >= p.size.K) continue;
          stage_states<kOwnSlab>(state.tile + (stage * kSlabs + slab) * kOwnSlab);
          ahead.store(decay + slab * S::kChannels, queries);
          __syncthreads();
          if (next < p.size.K) ahead.load(p, chunk, query_head, heads, next);
          add_states(sums, heads);
          __syncthreads();
        }
      }
      stage_scores(first_head, heads);
      __syncthreads();
      add_scores(sums, heads, values);
      __syncthreads();
      store(sums, first_head, heads);
      __syncthreads();
    }
  }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
