// What attention and its backward share on a CPU: blocks of rows and keys, and packed rows of queries.
//
// Rows are stacked, so that keys and values are loaded once for the whole group. Keys are counted along the flat axis
// of k and v, in blocks that do not follow the sequences' borders: what lies beyond a border is masked like any other
// invisible key.
#pragma once
#include "attention.h"
#include "core/matmul.h"
#include "core/parallel.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int64_t kRows = 96;        // rows of a task: whole register tiles of every instruction set
constexpr int64_t kMaxThreads = 64;  // slices of the workspace

inline Sequence sequence_at(const Shape& s, const Tensor& cu_q, const Tensor& cu_k, const Tensor& kv_lengths,
                            int64_t n) {
  if (!s.ragged) return {n, 0, s.queries, 0, defined(kv_lengths) ? index_at(kv_lengths, n) : s.keys};
  const int64_t query = index_at(cu_q, n), key = index_at(cu_k, n);
  return {0, query, index_at(cu_q, n + 1) - query, key, index_at(cu_k, n + 1) - key};
}

// Which of kLanes keys from `first` on a query sees.
SBHAL_INLINE vi visible_lanes(const Visible& v, int64_t first) {
  vi key;
  for (int i = 0; i < kLanes; ++i) key[i] = i;
  const auto from = [&](int64_t bound) {
    return key >= static_cast<int32_t>(max<int64_t>(min<int64_t>(bound - first, kLanes), 0));
  };
  return (from(v.keys.begin) & ~from(v.keys.end)) | (from(v.sinks.begin) & ~from(v.sinks.end));
}

inline void check_data(const Shape& s, const Tensor& cu_q, const Tensor& cu_k, const Tensor& kv_lengths) {
  if (s.ragged) {
    check_offsets("cu_seqlens_q", cu_q, s.queries);
    check_offsets("cu_seqlens_k", cu_k, s.keys);
  }
  for (int64_t b = 0; defined(kv_lengths) && b < s.batch; ++b) {
    const int64_t length = index_at(kv_lengths, b);
    if (length < 0 || length > s.keys)
      fail(Error::value, "kv_lengths[%lld] is %lld, expected 0 to %lld", static_cast<long long>(b),
           static_cast<long long>(length), static_cast<long long>(s.keys));
  }
}

struct RowBlock {
  int64_t sequence, first_row;
};

struct Problem {
  const Tensor &q, &k, &v, &cu_q, &cu_k, &kv_lengths;
  Shape shape;
  bool causal;
  int64_t window, sinks;
  float scale;

  Sequence sequence(int64_t n) const { return sequence_at(shape, cu_q, cu_k, kv_lengths, n); }
  Mask mask(int64_t n) const { return Mask(shape, sequence(n), causal, window, sinks); }
};

inline int64_t most_row_blocks(const Shape& s) {
  const int64_t rows = s.queries * s.group;
  return s.ragged ? rows / kRows + s.sequences : s.batch * ceil_div(rows, kRows);
}

inline Range rows_of(const Mask& mask, const RowBlock& block) {
  return {block.first_row, min(mask.rows(), block.first_row + kRows)};
}

// Longest first: later queries see more keys. Returns how many.
inline int64_t list_row_blocks(const Problem& p, RowBlock* out) {
  int64_t most = 0, count = 0;
  for (int64_t n = 0; n < p.shape.sequences; ++n) most = max(most, p.sequence(n).queries * p.shape.group);
  for (int64_t row = (most - 1) / kRows * kRows; row >= 0 && most > 0; row -= kRows)
    for (int64_t n = 0; n < p.shape.sequences; ++n)
      if (row < p.sequence(n).queries * p.shape.group) out[count++] = {n, row};
  return count;
}

// A task of attention: up to 96 rows of one key/value head by blocks of 192 keys, in float32. In the workspace:
//
//   q       [rows][q_pitch] the rows times scale, packed once    scores  [rows][192], in place the weights
//   keys    [192 / kPanel][depth][kPanel] of a block             o       [rows][o_pitch] and, of each row, largest [1],
//   values  [192][v_pitch] of a block                                    sums [kLanes] and the block's factor [1]
//
// A block: by panels of keys, each tile [kTileRows][kPanel] of scores; by rows, the weights; by panels of columns, each
// tile of o. A tile's sums are in registers; the panel is the outer loop and stays in cache. keys and values of all
// blocks are packed before the tasks start, or a task packs one block after the other into its thread's slice.
//
// A task of attention_backward owns 96 keys (grad_k, grad_v) or 96 rows (grad_q) and walks along blocks of 96 of the
// others. keys_t, values_t [96 / kPanel][columns][kPanel] and keys [96][pitch] of all blocks are packed before; a
// thread's slice has q and grad_o [96][pitch], p and ds [96][96], first scores and grad_o v^T, in place probabilities
// and gradients of the scores, and the sums that the task owns. Every phase ends with its parallel_for: within one no
// task reads what another writes.
// What a register tile of rows sees of a block of keys, counted from the block's first key. Whole vectors of keys are
// computed; where every row sees all of those, no mask is needed.
struct Tile {
  int64_t row, rows;
  Range hull, vectors;
  bool all;

  bool sees(int64_t begin, int64_t end) const { return max(hull.begin, begin) < min(hull.end, end); }
};

struct Tiles {
  Tile tile[kRows / kTileRows];
  int count = 0;

  Tiles(const Mask& mask, Range rows, Range keys) {
    for (int64_t r = rows.begin; r < rows.end; r += kTileRows) {
      const Range part = {r, min(rows.end, r + kTileRows)};
      const Visible any = mask.by_any(part);
      Range hull = any.any_of(keys) ? any.hull_in(keys) : Range{keys.begin, keys.begin};
      hull = {hull.begin - keys.begin, hull.end - keys.begin};
      const Range vectors = {hull.begin / kLanes * kLanes, round_up(hull.end, kLanes)};
      const bool all = mask.by_all(part).all_of({keys.begin + vectors.begin, keys.begin + vectors.end});
      tile[count++] = {r - rows.begin, part.end - part.begin, hull, vectors, all};
    }
  }
  const Tile* begin() const { return tile; }
  const Tile* end() const { return tile + count; }
};

// ---- data

// Element [b, i, h, 0] of a [batch, time, heads, size] tensor.
template <class T> SBHAL_INLINE const T* row_at(const Tensor& t, int64_t b, int64_t i, int64_t h) {
  return static_cast<const T*>(t.data) + b * t.stride[0] + i * t.stride[1] + h * t.stride[2];
}

// Rows of q or grad_o, times `factor`: zeros where the tensor is absent, or where `lse` says that no key is seen.
// Returns whether every value is finite.
template <class T> bool pack_query_rows(const Tensor& x, const Mask& mask, int64_t head, Range rows, int64_t columns,
                                        float factor, const float* lse, float* out) {
  bool finite = true;
  for (int64_t r = rows.begin; r < rows.end; ++r, out += pitch_of(columns)) {
    const bool given = defined(x) && !(lse && lse[r] == kInfinity);
    const Place at = mask.place(r, head);
    finite &= pack_row(given ? row_at<T>(x, at.b, at.i, at.h) : nullptr, given ? columns : 0, columns, factor, out);
  }
  return finite;
}

// Zeros in a contiguous [batch, time, heads, columns] result for the queries that belong to no sequence.
template <class T> void clear_padding(const Problem& p, const Tensor& out, int64_t columns) {
  if (!p.shape.ragged) return;
  const int64_t row = p.shape.heads * p.shape.group * columns;
  for (int64_t n = index_at(p.cu_q, p.shape.sequences) * row; n < p.shape.queries * row; ++n)
    static_cast<T*>(out.data)[n] = T{};
}

// Hands out consecutive parts of a buffer, each on its own cache line; measures when the base is null.
struct Carver {
  uintptr_t base;
  int64_t bytes = 0;
  explicit Carver(void* memory) : base(reinterpret_cast<uintptr_t>(memory)) {}
  template <class T> T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(base + bytes);
    bytes += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return part;
  }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
