// How a kernel is written and how it registers itself.
//
// A kernel file defines two functions in an anonymous namespace inside sbhal::SBHAL_ISA:
//
//   int64_t plan(const Tensor& x, ..., double scale);                         // inputs, then attributes
//   void launch(const Tensor& x, ..., double scale, const Tensor& y, const Launch& launch);   // + outputs
//
// and ends with SBHAL_KERNEL(name, version, plan, launch). The file is compiled once per instruction set
// or, for GPUs, once per backend.
// Everything below is a template with internal linkage: no symbol is shared between those copies.
#pragma once
#include "check.h"
#include "scalar.h"

#ifndef SBHAL_ISA
#error "kernel files are compiled with SBHAL_ISA and SBHAL_ISA_LEVEL set by the build"
#endif

namespace sbhal {
namespace SBHAL_ISA {
namespace {

template <class T> struct Argument;
template <> struct Argument<const Tensor&> {
  static constexpr char code = 'T';
  static const Tensor& get(const Value& v) { return v.tensor; }
};
template <> struct Argument<double> {
  static constexpr char code = 'd';
  static double get(const Value& v) { return v.number; }
};
template <> struct Argument<int64_t> {
  static constexpr char code = 'i';
  static int64_t get(const Value& v) { return v.integer; }
};
template <> struct Argument<bool> {
  static constexpr char code = 'b';
  static bool get(const Value& v) { return v.integer != 0; }
};
template <> struct Argument<const char*> {
  static constexpr char code = 's';
  static const char* get(const Value& v) { return v.text; }
};
template <> struct Argument<const Launch&> {
  static constexpr char code = 'L';
  static const Launch& get(const Value& v) { return v.launch; }
};

template <int... I> struct Indices {};
template <int N, int... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I> struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

template <class F, F fn> struct Thunk;
template <class R, class... A, R (*fn)(A...)> struct Thunk<R (*)(A...), fn> {
  static_assert(sizeof...(A) <= kMaxArguments, "an operator has at most kMaxArguments arguments");
  static constexpr char signature[] = {Argument<A>::code..., '\0'};
  template <int... I> static R unpack(const Value* v, Indices<I...>) { return fn(Argument<A>::get(v[I])...); }
  static R call(const Value* v) { return unpack(v, typename MakeIndices<sizeof...(A)>::type()); }
};

// Whether a launch takes what its plan takes, then outputs, then what it runs on: both are given the same arguments.
constexpr bool follows(const char* launch, const char* plan) {
  while (*plan)
    if (*plan++ != *launch++) return false;
  while (*launch == 'T') ++launch;
  return launch[0] == 'L' && launch[1] == '\0';
}

template <class... S> void expect_shape(const char* name, const Tensor& t, S... sizes) {
  const int64_t expected[] = {static_cast<int64_t>(sizes)...};
  check_shape(name, t, sizeof...(S), expected);
}

SBHAL_BOTH bool defined(const Tensor& t) { return t.ndim >= 0; }

// Entry i of a one-dimensional int32 or int64 tensor.
SBHAL_BOTH int64_t index_at(const Tensor& t, int64_t i) {
  i *= t.stride[0];
  return t.dtype == DType::i32 ? static_cast<const int32_t*>(t.data)[i] : static_cast<const int64_t*>(t.data)[i];
}

// The place of a string attribute among the accepted ones.
template <int count> int choice(const char* name, const char* given, const char* const (&accepted)[count]) {
  return check_choice(name, given, accepted, count);
}

// Two attributes are equal strings; <cstring> stays out because its overloads are inline functions.
inline bool equal(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

// A pointer in a named section: constant data, so loading the module runs no code of any instruction set.
#ifdef SBHAL_DEVICE_PASS  // of a compiler that reads a file once for the host and once for each device
#define SBHAL_KERNEL(name, version, plan, launch)
#else
#define SBHAL_KERNEL(name, version, plan, launch)                                                                  \
  namespace sbhal {                                                                                                \
  namespace SBHAL_ISA {                                                                                            \
  namespace {                                                                                                      \
  static_assert(follows(Thunk<decltype(&launch), launch>::signature, Thunk<decltype(&plan), plan>::signature),     \
                #name ": launch takes what plan takes, then the outputs, then const Launch&");                     \
  const KernelEntry name##_entry = {#name,                                                                         \
                                    version,                                                                       \
                                    SBHAL_ISA_LEVEL,                                                               \
                                    Thunk<decltype(&plan), plan>::signature,                                       \
                                    Thunk<decltype(&plan), plan>::call,                                            \
                                    Thunk<decltype(&launch), launch>::signature,                                   \
                                    Thunk<decltype(&launch), launch>::call};                                       \
  __attribute__((section("sbhal_kernels"), used, unused)) const KernelEntry* const name##_pointer = &name##_entry; \
  }                                                                                                                \
  }                                                                                                                \
  }
#endif
