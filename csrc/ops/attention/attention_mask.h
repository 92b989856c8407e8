// Which keys a query of attention sees: sinks, a window that ends at the query, packed sequences. On CPUs and GPUs.
//
// The m query heads that read one key/value head are stacked: row r of a sequence is query r / m of head r % m.
#pragma once
#include "core/scalar.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// Rows and keys of a sequence. A GPU takes several instructions for arithmetic on 64 bits; its kernels refuse more.
#ifdef SBHAL_GPU
using Index = int32_t;
#else
using Index = int64_t;
#endif

struct Shape {
  int64_t batch, queries, keys, heads, group, depth, width, sequences;
  bool ragged;
};

struct Range {
  Index begin, end;
};

// Batch entry, query and query head of a row.
struct Place {
  int64_t b, i, h;
};

struct Sequence {
  Index batch, first_query, queries, first_key, keys;
};

// The keys that one query, or any of neighbouring ones, sees: the sinks, and a range.
struct Visible {
  Range sinks, keys;

  SBHAL_BOTH bool all_of(Range r) const {
    return (r.begin >= keys.begin && r.end <= keys.end) || (r.begin >= sinks.begin && r.end <= sinks.end);
  }
  SBHAL_BOTH bool any_of(Range r) const {
    return max(r.begin, keys.begin) < min(r.end, keys.end) || max(r.begin, sinks.begin) < min(r.end, sinks.end);
  }
  SBHAL_BOTH bool has(Index key) const {
    return (key >= keys.begin && key < keys.end) || (key >= sinks.begin && key < sinks.end);
  }
  // The smallest range within r that holds every visible key of r; any_of(r) must hold.
  SBHAL_BOTH Range hull_in(Range r) const {
    const Range a = {max(r.begin, keys.begin), min(r.end, keys.end)};
    const Range b = {max(r.begin, sinks.begin), min(r.end, sinks.end)};
    if (a.begin >= a.end) return b;
    if (b.begin >= b.end) return a;
    return {min(a.begin, b.begin), max(a.end, b.end)};
  }
};

struct Mask {
  Sequence sequence;
  Index group, window, sinks;
  bool causal;

  SBHAL_BOTH Mask(const Shape& s, const Sequence& q, bool is_causal, int64_t window_size, int64_t sink_count)
      : sequence(q),
        group(static_cast<Index>(s.group)),
        window(static_cast<Index>(min(window_size, s.keys + s.queries))),
        sinks(static_cast<Index>(min<int64_t>(sink_count, q.keys))),
        causal(is_causal) {}

  SBHAL_BOTH Index rows() const { return sequence.queries * group; }
  SBHAL_BOTH Place place(Index row, int64_t head) const {
    return {sequence.batch, sequence.first_query + row / group, head * group + row % group};
  }

  // The key that a row's query stands at, maybe before the first.
  SBHAL_BOTH Index position(Index row) const {
    return row / group + sequence.first_key + sequence.keys - sequence.queries;
  }
  SBHAL_BOTH Visible from(Index position) const {
    const Index first = sequence.first_key, last = first + sequence.keys;
    Visible v = {{first, first + sinks}, {first, last}};
    if (causal) v.keys.end = max(first, position + 1);
    if (window > 0) v.keys.begin = max(first, position - window + 1);
    return v;
  }
  SBHAL_BOTH Visible at(Index row) const { return from(position(row)); }
  // Both ends of a query's range only move forward from row to row.
  SBHAL_BOTH Visible by_any(Range rows) const {
    Visible v = at(rows.begin);
    v.keys.end = at(rows.end - 1).keys.end;
    return v;
  }
  SBHAL_BOTH Visible by_all(Range rows) const {
    Visible v = at(rows.begin);
    v.keys.begin = at(rows.end - 1).keys.begin;
    if (v.keys.begin <= v.sinks.end) v.keys.begin = min(v.keys.begin, v.sinks.begin);
    return v;
  }
  // The rows outside of which no row sees one of the keys.
  SBHAL_BOTH Range rows_that_see(Range keys) const {
    const Index first = sequence.first_key, queries = sequence.queries;
    if (keys.begin >= first + sequence.keys) return {0, 0};
    if (keys.begin < first + sinks) return {0, rows()};
    const Index start = position(0);
    Range seen = {0, queries};
    if (causal) seen.begin = min(queries, max<Index>(0, keys.begin - start));
    if (window > 0) seen.end = min(queries, max(seen.begin, keys.end - 1 + window - start));
    return {seen.begin * group, seen.end * group};
  }
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
