// Which keys a query of attention sees: sinks, a window that ends at the query, packed sequences.
#pragma once
#include "core/kernel.h"
#include "core/simd.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

struct Shape {
  int64_t batch, queries, keys, heads, group, depth, width, sequences;
  bool ragged;
};

struct Range {
  int64_t begin, end;
};

// Batch entry, query and query head of a row.
struct Place {
  int64_t b, i, h;
};

struct Sequence {
  int64_t batch, first_query, queries, first_key, keys;
};

inline Sequence sequence_at(const Shape& s, const Tensor& cu_q, const Tensor& cu_k, const Tensor& kv_lengths,
                            int64_t n) {
  if (!s.ragged) return {n, 0, s.queries, 0, defined(kv_lengths) ? index_at(kv_lengths, n) : s.keys};
  const int64_t query = index_at(cu_q, n), key = index_at(cu_k, n);
  return {0, query, index_at(cu_q, n + 1) - query, key, index_at(cu_k, n + 1) - key};
}

// The keys that one query, or any of neighbouring ones, sees: the sinks, and a range.
struct Visible {
  Range sinks, keys;

  bool all_of(Range r) const {
    return (r.begin >= keys.begin && r.end <= keys.end) || (r.begin >= sinks.begin && r.end <= sinks.end);
  }
  bool any_of(Range r) const {
    return max(r.begin, keys.begin) < min(r.end, keys.end) || max(r.begin, sinks.begin) < min(r.end, sinks.end);
  }
  // The smallest range within r that holds every visible key of r; any_of(r) must hold.
  Range hull_in(Range r) const {
    const Range a = {max(r.begin, keys.begin), min(r.end, keys.end)};
    const Range b = {max(r.begin, sinks.begin), min(r.end, sinks.end)};
    if (a.begin >= a.end) return b;
    if (b.begin >= b.end) return a;
    return {min(a.begin, b.begin), max(a.end, b.end)};
  }
};

struct Mask {
  Sequence sequence;
  int64_t group, window, sinks;
  bool causal;

  Mask(const Shape& s, const Sequence& q, bool is_causal, int64_t window_size, int64_t sink_count)
      : sequence(q),
        group(s.group),
        window(min(window_size, s.keys + s.queries)),
        sinks(min(sink_count, q.keys)),
        causal(is_causal) {}

  int64_t rows() const { return sequence.queries * group; }
  Place place(int64_t row, int64_t head) const {
    return {sequence.batch, sequence.first_query + row / group, head * group + row % group};
  }

  Visible at(int64_t row) const {
    const int64_t first = sequence.first_key, last = first + sequence.keys;
    const int64_t position = row / group + last - sequence.queries;
    Visible v = {{first, first + sinks}, {first, last}};
    if (causal) v.keys.end = max(first, position + 1);
    if (window > 0) v.keys.begin = max(first, position - window + 1);
    return v;
  }
  // Both ends of a query's range only move forward from row to row.
  Visible by_any(Range rows) const {
    Visible v = at(rows.begin);
    v.keys.end = at(rows.end - 1).keys.end;
    return v;
  }
  Visible by_all(Range rows) const {
    Visible v = at(rows.begin);
    v.keys.begin = at(rows.end - 1).keys.begin;
    if (v.keys.begin <= v.sinks.end) v.keys.begin = min(v.keys.begin, v.sinks.begin);
    return v;
  }
};

// Which of kLanes keys from `first` on a query sees.
SBHAL_INLINE vi visible_lanes(const Visible& v, int64_t first) {
  vi key;
  for (int i = 0; i < kLanes; ++i) key[i] = i;
  const auto from = [&](int64_t bound) {
    return key >= static_cast<int32_t>(max<int64_t>(min<int64_t>(bound - first, kLanes), 0));
  };
  return (from(v.keys.begin) & ~from(v.keys.end)) | (from(v.sinks.begin) & ~from(v.sinks.end));
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
