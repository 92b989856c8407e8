// Tiles of the CPU kernels of spike_linear: kDotRows rows of counts times a panel. A group's sum stays in integer
// registers; across groups sums are float32, first group first, whatever the tile, so a row gives the same bits alone
// and among others.
#pragma once
#include "core/parallel.h"
#include "spike_linear_panel_cpu.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kDotRows = kLanes == 16 ? 6 : 4;  // of a tile: two accumulators a row, and more chains than the latency
constexpr int64_t kMostRows = 88 * kDotRows;    // of a block, which shares a packed panel

// Rows of counts. Where bytes are multiplied they are there a second time, each plus 128 in a byte.
struct Counts {
  const int16_t* data;
  int64_t stride;
  const uint8_t* bytes;
  const bool* fits;  // of each row and group: whether every count of it fits such a byte
  int64_t width, groups;

  const int16_t* at(int64_t row, int64_t k) const { return data + row * stride + k; }
};

inline bool wants_bytes(const Tensor& weight) { return kBytesMultiply && is_bytes(weight); }

inline int64_t counts_bytes(const Layer& layer, const Tensor& weight) {
  return wants_bytes(weight) ? layer.counts.count * (layer.width + layer.groups) : 0;
}

inline Counts pack_counts(const Tensor& counts, const Tensor& weight, const Layer& layer, char* workspace,
                          int num_threads) {
  Counts c = {
      static_cast<const int16_t*>(counts.data), layer.counts.stride, nullptr, nullptr, layer.width, layer.groups};
  if (!wants_bytes(weight)) return c;
  auto* bytes = reinterpret_cast<uint8_t*>(workspace);
  bool* fits = reinterpret_cast<bool*>(workspace + layer.counts.count * layer.width);
  parallel_for(layer.counts.count, num_threads, [&](int64_t row, int) {
    for (int64_t g = 0; g < layer.groups; ++g) {
      const int16_t* from = c.at(row, g * layer.group);
      uint8_t* to = bytes + row * layer.width + g * layer.group;
      vw beyond = {};
      for (int64_t k = 0; k < layer.group; k += 2 * kLanes) {
        const vw shifted = *reinterpret_cast<const vw_unaligned*>(from + k) + 128;
        *reinterpret_cast<vb_unaligned*>(to + k) = __builtin_convertvector(shifted, vb);
        beyond |= shifted & 0xff00;
      }
      fits[row * layer.groups + g] = !any_bits(reinterpret_cast<vi>(beyond));
    }
  });
  c.bytes = bytes, c.fits = fits;
  return c;
}

// The rows of a block and what comes of them for the outputs of a panel: [rows][kColumns] each.
struct Block {
  int64_t first, rows;
  float* sums;            // over groups, of scale times the group's sum
  const float* weights;   // of each row and output in the gradient of the scales; none if null
  float* scale_gradient;  // [groups of the panel][kColumns]
};

// Some rows of counts times the outputs of a panel: the sums of one group.
template <int kRows, class Code> struct Tile {
  const Panel<Code>& panel;
  const Counts& counts;
  int64_t row;  // among all

  using Sums = vi[kRows][2];
  using Values = vf[kRows][2];

  // The sums of group g of the panel, which begins at code k of the rows.
  SBHAL_INLINE void group_sums(int64_t g, int64_t k, int64_t group, Values& values) const {
    if (sizeof(Code) > 1 && panel.wide[g]) return wide_sums(g, k, group, values);
    Sums sums;
    bool bytes = Panel<Code>::kBytes;
    if (bytes)
      for (int r = 0; r < kRows; ++r) bytes &= counts.fits[(row + r) * counts.groups + k / group];
    if (bytes) {
      if constexpr (Panel<Code>::kBytes) byte_sums(g, k, group, sums);
    } else {
      pair_sums(g, k, group, sums);
    }
    for (int r = 0; r < kRows; ++r)
      for (int h = 0; h < 2; ++h) values[r][h] = to_float(sums[r][h]);
  }

 private:
  SBHAL_INLINE const int32_t* units_of(int64_t g, int64_t group) const {
    return panel.units + g * (group / Panel<Code>::kCodes) * kColumns;
  }

  // The counts of the tile below.
  template <class T> SBHAL_INLINE static void ask_for_next(const T* count, int64_t pitch, int64_t group) {
    for (int r = 0; r < kRows; ++r)
      for (int64_t i = 0; i < group; i += 64 / static_cast<int64_t>(sizeof(T)))
        prefetch(count + (kRows + r) * pitch + i);
  }

  // One row alone has too few sums to hide a multiplication's time behind the others', so it has each twice.
  static constexpr int kChains = kRows == 1 ? 2 : 1;

  SBHAL_INLINE static void join(const Sums (&sums)[kChains], Sums& out) {
    for (int r = 0; r < kRows; ++r)
      for (int h = 0; h < 2; ++h) {
        out[r][h] = sums[0][r][h];
        if (kChains > 1) out[r][h] += sums[kChains - 1][r][h];
      }
  }

  SBHAL_INLINE void byte_sums(int64_t g, int64_t k, int64_t group, Sums& out) const {
    const int32_t* unit = units_of(g, group);
    const uint8_t* count = counts.bytes + row * counts.width + k;
    ask_for_next(count, counts.width, group);
    Sums sums[kChains] = {};
    for (int r = 0; r < kRows; ++r)
      for (int h = 0; h < 2; ++h) sums[0][r][h] = load(panel.start + g * kColumns + h * kLanes);
    for (int64_t u = 0; u < group / 4; u += kChains)
      for (int c = 0; c < kChains; ++c, unit += kColumns, count += 4) {
        const vi left = load(unit), right = load(unit + kLanes);
        for (int r = 0; r < kRows; ++r) {
          const vi x = set(unit_at(count + r * counts.width));
          sums[c][r][0] = add_bytes(sums[c][r][0], x, left);
          sums[c][r][1] = add_bytes(sums[c][r][1], x, right);
        }
      }
    join(sums, out);
  }

  SBHAL_INLINE void pair_sums(int64_t g, int64_t k, int64_t group, Sums& out) const {
    const int32_t* unit = units_of(g, group);
    const int16_t* count = counts.at(row, k);
    ask_for_next(count, counts.stride, group);
    Sums sums[kChains] = {};
    const auto add = [&](int c, vi left, vi right) {
      for (int r = 0; r < kRows; ++r) {
        const vi x = set(unit_at(count + r * counts.stride));
        sums[c][r][0] = add_pairs(sums[c][r][0], x, left);
        sums[c][r][1] = add_pairs(sums[c][r][1], x, right);
      }
      count += 2;
    };
    for (int64_t u = 0; u < group / Panel<Code>::kCodes; u += kChains)
      for (int c = 0; c < kChains; ++c, unit += kColumns) {
        const vi left = load(unit), right = load(unit + kLanes);
        if constexpr (Panel<Code>::kBytes) {
          add(c, widen<0>(left), widen<0>(right));
          add(c, widen<1>(left), widen<1>(right));
        } else {
          add(c, left, right);
        }
      }
    join(sums, out);
  }

  // For codes that no 8-bit quantizer makes: exact, not fast.
  __attribute__((noinline)) void wide_sums(int64_t g, int64_t k, int64_t group, Values& values) const {
    const int32_t* unit = units_of(g, group);
    for (int r = 0; r < kRows; ++r)
      for (int64_t n = 0; n < kColumns; ++n) {
        int64_t sum = 0;
        for (int64_t i = 0; i < group; ++i) {
          const int32_t pair = unit[i / 2 * kColumns + n];
          sum += static_cast<int64_t>(counts.at(row + r, k)[i]) * static_cast<int16_t>(pair >> i % 2 * 16);
        }
        values[r][n / kLanes][n % kLanes] = static_cast<float>(sum);
      }
  }
};

// In registers: the sums of a group, [kRows][2 vectors of outputs] integers, and total, as many floats. The panel lies
// in L1 for all tiles of the block: two vectors of its units are read once for kRows rows, of each of which one unit of
// counts is spread over the lanes. A group's sums meet its scales, and the backward's weights of the rows, before the
// next group is summed.
//
// Adds what the panel's codes, [first, first + depth) of every row, give to rows [row, row + kRows) of the block. Out
// of line, so that the compiler gives the inner loops all registers.
template <int kRows, class Code> __attribute__((noinline)) void add_tile(const Panel<Code>& panel, const Counts& counts,
                                                                         const Block& block, int64_t row, int64_t first,
                                                                         int64_t depth, int64_t group) {
  const Tile<kRows, Code> tile = {panel, counts, block.first + row};
  float* const sums = block.sums + row * kColumns;
  vf total[kRows][2];
  for (int r = 0; r < kRows; ++r)
    for (int h = 0; h < 2; ++h) total[r][h] = load(sums + r * kColumns + h * kLanes);
  for (int64_t g = 0; g < depth / group; ++g) {
    typename Tile<kRows, Code>::Values values;
    tile.group_sums(g, first + g * group, group, values);
    for (int h = 0; h < 2; ++h) {
      const vf scale = load(panel.scales + g * kColumns + h * kLanes);
      for (int r = 0; r < kRows; ++r) total[r][h] += scale * values[r][h];
    }
    if (!block.weights) continue;
    for (int h = 0; h < 2; ++h) {
      float* const gradient = block.scale_gradient + g * kColumns + h * kLanes;
      vf sum = load(gradient);
      for (int r = 0; r < kRows; ++r) sum += load(block.weights + (row + r) * kColumns + h * kLanes) * values[r][h];
      store(gradient, sum);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int h = 0; h < 2; ++h) store(sums + r * kColumns + h * kLanes, total[r][h]);
}

// Some number as a type.
template <int n> struct Number {
  static constexpr int value = n;
};

// The same for all rows of the block.
template <class Code> void add_panel(const Panel<Code>& panel, const Counts& counts, const Block& block, int64_t first,
                                     int64_t depth, int64_t group) {
  int64_t row = 0;
  const auto add = [&](auto rows) {
    for (; row + rows.value <= block.rows; row += rows.value)
      add_tile<rows.value>(panel, counts, block, row, first, depth, group);
  };
  add(Number<kDotRows>());
  add(Number<kDotRows / 2>());
  add(Number<1>());
}

// Blocks of rows, as equal as whole tiles allow.
struct Blocks {
  int64_t count, rows;
  explicit Blocks(int64_t all)
      : count(ceil_div(all, kMostRows)), rows(count ? round_up(ceil_div(all, count), kDotRows) : 0) {}
};

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
