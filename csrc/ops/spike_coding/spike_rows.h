// Tensors [..., K] as rows: what all spike operators share.
#pragma once
#include "core/kernel.h"
#include "core/scalar.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

struct Rows {
  int64_t count, width, stride;
};

// The axes from first_axis on as [rows, K]: all but the last must lie at one constant stride, or the bridge copies.
inline Rows rows_of(const char* name, const Tensor& t, int first_axis = 0) {
  Rows rows = {1, 1, 1};
  if (t.ndim <= first_axis) return rows;
  check_innermost(name, t);
  rows.width = rows.stride = t.shape[t.ndim - 1];
  int64_t expected = 0;
  for (int i = t.ndim - 2; i >= first_axis; --i) {
    if (t.shape[i] == 0) return {0, rows.width, rows.stride};
    if (t.shape[i] == 1) continue;
    if (rows.count > 1 && t.stride[i] != expected)
      fail(Error::stride, "%s has leading axes that do not fold into rows", name);
    if (rows.count == 1) rows.stride = t.stride[i];
    rows.count *= t.shape[i];
    expected = t.stride[i] * t.shape[i];
  }
  return rows;
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal
