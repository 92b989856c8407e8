// What the GPU kernels of spike_encode and spike_quantize share: a team of threads reads its row once, keeps it in
// registers, sums it, and writes what becomes of every value under the threshold.
//
// A team is 32 lanes for narrow rows, so that a block serves eight of them, and else the block. What a wide row has
// beyond the team's registers is read again, from cache. Which thread adds which values depends on the width alone, so
// rows give the same threshold wherever they lie.
#pragma once
#include "core/cascade.h"
#include "gpu/lane.h"
#include "gpu/pack.h"
#include "spike_encode.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 32;            // lanes of the smaller team
constexpr int kNarrow = 16 * kGroup;  // the widest row that it serves
constexpr int kHeldValues = 32;       // that a thread keeps

// The sum over the team, in an order that no wavefront's size changes.
template <int team> SBHAL_INLINE float team_sum(float v) {
  v = wave_sum<kGroup>(v);
  if constexpr (team == kGroup) return v;
  SBHAL_SHARED(float, partial, kThreads / kGroup);
  if (threadIdx.x % kGroup == 0) partial[threadIdx.x / kGroup] = v;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kGroup; ++i) sum += partial[i];
  return sum;
}

// A row in packs of 16 bytes. In an aligned one all packs are whole and lie so that one read takes one.
template <class T, bool aligned> struct Row {
  static constexpr int kCount = 16 / sizeof(T);
  const T* x;
  int64_t width;

  // Zeros past the end.
  SBHAL_INLINE Pack<T, kCount> load(int64_t pack) const {
    const int64_t first = pack * kCount;
    Pack<T, kCount> values = {};
    if (aligned) {
      if (first < width) values = load_pack<kCount>(x + first);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (first + i < width) values.at[i] = x[first + i];
    }
    return values;
  }

  // Writes Result::of every value.
  template <class Result> SBHAL_INLINE void put(typename Result::type* out, int64_t pack, const Pack<T, kCount>& values,
                                                float threshold) const {
    const int64_t first = pack * kCount;
    Pack<typename Result::type, kCount> results;
#pragma unroll
    for (int i = 0; i < kCount; ++i) results.at[i] = Result::of(to_float(values.at[i]), threshold);
    if (aligned) {
      if (first < width) store_pack(out + first, results);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (first + i < width) out[first + i] = results.at[i];
    }
  }
};

template <class T, int count> SBHAL_INLINE float sum_magnitudes(const Pack<T, count>& pack) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < count; ++i) sum += vabs(to_float(pack.at[i]));
  return sum;
}

// Result says what becomes of a value: its type and of(x, threshold).
//
// A block: eight rows, 32 threads each, or one row.
//
//   registers  of a thread: 32 values of its row as packs of 16 bytes, member, member + team, ...; further ones, of a
//              wide row, pass by and are read again in the second pass
//   partial    [8] in shared memory, only where the block is the team: what each 32 threads have summed
//
// Read and add up, sum over the team, threshold, write a result for every value. The one barrier, in team_sum(), shows
// partial to all; it is written once, so nobody waits for its readers. Threads of a row that is none stay for the sum.
template <class Result, class T, bool aligned, int team> __global__ void __launch_bounds__(kThreads)
    code_rows(const T* x, Rows rows, Threshold rule, typename Result::type* results, float* thresholds) {
  constexpr int count = 16 / sizeof(T), held = kHeldValues / count;
  const int member = static_cast<int>(threadIdx.x) % team;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * (kThreads / team) + threadIdx.x / team;
  const Row<T, aligned> row = {x + number * rows.stride, number < rows.count ? rows.width : 0};
  const int64_t packs = ceil_div(row.width, count);
  results += number * rows.width;

  Pack<T, count> values[held];
  float sum = 0;
#pragma unroll
  for (int k = 0; k < held; ++k) values[k] = row.load(member + k * team);
#pragma unroll
  for (int k = 0; k < held; ++k) sum += sum_magnitudes(values[k]);
  Cascade<float> rest;
  for (int64_t i = member + held * team, read = 1; i < packs; i += team, ++read)
    rest.add(sum_magnitudes(row.load(i)), read);
  sum = team_sum<team>(sum + rest.total());

  const float threshold = threshold_of<T>(rows.width > 0 ? sum / static_cast<float>(rows.width) : 0.0f, rule);
  if (thresholds && member == 0 && number < rows.count) thresholds[number] = threshold;
#pragma unroll
  for (int k = 0; k < held; ++k) row.template put<Result>(results, member + k * team, values[k], threshold);
  for (int64_t i = member + held * team; i < packs; i += team)
    row.template put<Result>(results, i, row.load(i), threshold);
}

// `thresholds` may be null.
template <class Result, class T> void code(const char* name, const Tensor& x, const Rows& rows, const Threshold& rule,
                                           const Tensor& results, float* thresholds, const Launch& launch) {
  using Out = typename Result::type;
  constexpr int count = 16 / sizeof(T);
  const bool aligned = rows.width % count == 0 && (rows.count <= 1 || rows.stride % count == 0) &&
                       packs_at(x, sizeof(T), count) && packs_at(results, sizeof(Out), count);
  const bool narrow = rows.width <= kNarrow;
  const auto kernel = narrow ? (aligned ? code_rows<Result, T, true, kGroup> : code_rows<Result, T, false, kGroup>)
                             : (aligned ? code_rows<Result, T, true, kThreads> : code_rows<Result, T, false, kThreads>);
  launch_kernel(name, kernel, narrow ? ceil_div(rows.count, kThreads / kGroup) : rows.count, kThreads, launch,
                static_cast<const T*>(x.data), rows, rule, static_cast<Out*>(results.data), thresholds);
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
