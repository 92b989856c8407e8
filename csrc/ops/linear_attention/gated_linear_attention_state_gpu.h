// The state of gated linear attention in matrix tiles: a block of kThreads threads holds all channels K and kColumns
// columns of V of one key/value head in registers, and advances it by a chunk:  S = total S + (decayed keys)^T values.
#pragma once
#include "gated_linear_attention_chunk_gpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kThreads = 256, kColumns = 64, kColumnTiles = kColumns / 16;
constexpr int kStaged = kThreads / 2;  // channels staged at once: two threads each, see HalfDecays
constexpr int kTokenPitch = kChunk + 8;

// Wavefronts are dealt to the column tiles; those that share one, kRowWaves, take its row tiles in turn.
struct Place {
  static constexpr int kRowWaves = kThreads / SBHAL_WAVE / kColumnTiles;
  SBHAL_INLINE static int column() { return wave() % kColumnTiles * 16; }
  SBHAL_INLINE static int row_tile(int own) { return wave() / kColumnTiles + kRowWaves * own; }
};

// One key/value head of a sequence, and the columns [column, column + columns) of its values.
struct Head {
  int n, head, column, columns;
};

// V^T [kColumns][tokens] in parts, zeros where there is no token or column.
template <class T> struct Values {
  using E = typename Parts<T>::Element;
  static constexpr int kPlane = kColumns * kTokenPitch, kSize = Parts<T>::kInput * kPlane;

  SBHAL_INLINE static void stage(const Tensor& v, const Head& at, const Chunk& chunk, E* to) {
    for (int job = static_cast<int>(threadIdx.x); job < 2 * kColumns; job += kThreads) {
      const int column = job % kColumns, half = job / kColumns * kHalf;
      const T* const from = row_of<const T>(v, chunk.batch, chunk.first + half, at.head) + at.column + column;
      float x[kHalf];
#pragma unroll
      for (int i = 0; i < kHalf; ++i)
        x[i] = column < at.columns && chunk.has(half + i) ? to_float(from[i * v.stride[1]]) : 0;
      store_parts<Parts<T>::kInput>(x, to + column * kTokenPitch + half, kPlane);
    }
  }
  SBHAL_INLINE static Operand<E> operand(const E* values) {
    return {values + Place::column() * kTokenPitch, kTokenPitch, kPlane};
  }
};

// K^T [kStaged][tokens] in parts, each key decayed to the chunk's end.
template <class T> struct Keys {
  using E = typename Parts<T>::Element;
  static constexpr int kPlane = kStaged * kTokenPitch, kSize = Parts<T>::kSum * kPlane;

  // The channels [first, first + kStaged), and each one's decay over the whole chunk to total[channel - first].
  SBHAL_INLINE static void stage(const Tensor& k, const Gates<T>& gates, int head, const Chunk& chunk, int first, int K,
                                 E* to, float* total) {
    const int channel = HalfDecays::channel(), d = first + channel, half = HalfDecays::half() * kHalf;
    const T* const from = row_of<const T>(k, chunk.batch, chunk.first + half, head) + d;
    float x[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) x[i] = d < K && chunk.has(half + i) ? to_float(from[i * k.stride[1]]) : 0;
    HalfDecays decays(gates, chunk, d, d < K);
    const float whole = decays.suffix();
#pragma unroll
    for (int i = 0; i < kHalf; ++i) x[i] = decayed(x[i], decays.alpha[i]);
    store_parts<Parts<T>::kSum>(x, to + channel * kTokenPitch + half, kPlane);
    if (half == 0) total[channel] = whole;
  }
};

// kRowTiles covers K. The state [kRowTiles * 16 channels][64 columns] is float32 in registers; of a block of eight
// wavefronts each holds, as 16 x 16 tiles (of four, each holds what is here that of w and w + 4):
//
//                     columns 0..15   16..31   32..47   48..63
//   channels 0..15         0            1        2        3
//   channels 16..31        4            5        6        7
//   channels 32..47        0            1        2        3    and so on
//
// advance() takes 128 channels at a time: stage keys [128][16 tokens] and total [128], barrier, f, tiles = total tiles
// + keys values^T with values [64][16 tokens], barrier. The first barrier shows the keys, their total and, once a
// chunk, the values that the caller staged; the second waits for the readers of all three.
template <class T, int kRowTiles> struct State {
  using E = typename Parts<T>::Element;
  static constexpr int kOwn = kRowTiles / Place::kRowWaves, kStages = (kRowTiles * 16 + kStaged - 1) / kStaged;
  static constexpr int kOwnStaged = kOwn / kStages;
  MmaTile<E> tile[kOwn];

  // f(channel, column of the head's, element) for the elements that this thread holds and that exist.
  template <class F> SBHAL_INLINE void each(const Head& at, int K, const F& f) {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      tile[own].each([&](int row, int column, float& element) {
        row += Place::row_tile(own) * 16, column += Place::column();
        if (row < K && column < at.columns) f(row, column, element);
      });
    }
  }
  SBHAL_INLINE void zero() {
#pragma unroll
    for (auto& t : tile) t.zero();
  }
  // from and to: [K][V] from column `at.column` on
  SBHAL_INLINE void load(const Head& at, const float* from, int64_t pitch, int K) {
    zero();
    each(at, K, [&](int row, int column, float& element) { element = from[row * pitch + column]; });
  }
  SBHAL_INLINE void store(const Head& at, float* to, int64_t pitch, int K) {
    each(at, K, [&](int row, int column, float& element) { to[row * pitch + column] = element; });
  }

  // keys: room for Keys<T>::kSize, total: for kStaged floats. Needs the staged values behind a barrier, leaves the room
  // free. f(stage) sees the chunk's decays in total.
  template <class F> SBHAL_INLINE void advance(const Tensor& k, const Gates<T>& gates, int head, const Chunk& chunk,
                                               int K, E* keys, float* total, const E* values, const F& f) {
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) {
      Keys<T>::stage(k, gates, head, chunk, stage * kStaged, K, keys, total);
      __syncthreads();
      f(stage);
#pragma unroll
      for (int own = 0; own < kOwnStaged; ++own) {
        MmaTile<E>& t = tile[stage * kOwnStaged + own];
        const int row = Place::row_tile(own) * 16;
        t.each([&](int i, int, float& element) { element = decayed(element, total[row + i]); });
        multiply_parts<Parts<T>::kSum, Parts<T>::kSum, Parts<T>::kInput, Stored::rows, Stored::columns>(
            t, Operand<E>{keys + row * kTokenPitch, kTokenPitch, Keys<T>::kPlane}, Values<T>::operand(values));
      }
      __syncthreads();
    }
  }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
