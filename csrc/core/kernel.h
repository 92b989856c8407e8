// How a kernel is written and how it registers itself.
//
// A kernel file defines two functions in an anonymous namespace inside sbhal::SBHAL_ISA. For an operator whose
// SBHAL_ARGUMENTS are LifScan:
//
//   Plan plan(const LifScan& a);
//   void launch(const LifScan& a, const Plan& plan, const Launch& launch);
//
// and ends with SBHAL_KERNEL(lif_scan, version, LifScan). What plan returns is a plain struct of checked sizes, one of
// which is `int64_t workspace_bytes`; launch is given it and checks nothing again. The file is compiled once per
// instruction set or, for GPUs, once per backend.
// Everything below is a template with internal linkage: no symbol is shared between those copies.
#pragma once
#include "arguments.h"
#include "check.h"
#include "scalar.h"

#ifndef SBHAL_ISA
#error "kernel files are compiled with SBHAL_ISA and SBHAL_ISA_LEVEL set by the build"
#endif

namespace sbhal {
namespace SBHAL_ISA {
namespace {

// What the module calls, from what is overloaded for a struct of arguments.
template <class A> struct Thunks {
  using Plan = decltype(plan(*static_cast<const A*>(nullptr)));
  static_assert(__is_trivially_copyable(Plan) && sizeof(Plan) <= kMaxPlanned, "a plan is plain data of few bytes");
  static constexpr const char* arguments = A::kText;
  static int64_t call_plan(const void* given, void* planned) {
    const Plan result = plan(*static_cast<const A*>(given));
    __builtin_memcpy(planned, &result, sizeof result);
    return result.workspace_bytes;
  }
  static void call_launch(const void* given, const void* planned, const Launch& on) {
    launch(*static_cast<const A*>(given), *static_cast<const Plan*>(planned), on);
  }
};

// ---- kernels whose functions take their arguments one by one: plan(inputs, attributes) returns bytes of workspace,
// launch takes the same, then the outputs, then const Launch&

template <class T> struct Argument;
template <> struct Argument<const Tensor&> {
  static constexpr char code = 'O';
  static const Tensor& get(const Value* v, const Launch*) { return v->tensor; }
};
template <> struct Argument<double> {
  static constexpr char code = 'd';
  static double get(const Value* v, const Launch*) { return v->number; }
};
template <> struct Argument<int64_t> {
  static constexpr char code = 'i';
  static int64_t get(const Value* v, const Launch*) { return v->integer; }
};
template <> struct Argument<bool> {
  static constexpr char code = 'b';
  static bool get(const Value* v, const Launch*) { return v->flag; }
};
template <> struct Argument<const char*> {
  static constexpr char code = 's';
  static const char* get(const Value* v, const Launch*) { return v->text; }
};
template <> struct Argument<const Launch&> {
  static constexpr char code = 'L';
  static const Launch& get(const Value*, const Launch* on) { return *on; }
};

template <class... A> struct Letters {
  static constexpr char all[] = {Argument<A>::code..., '\0'};
};

// Whether a launch takes what its plan takes, then outputs, then what it runs on: both are given the same arguments.
constexpr bool follows(const char* launch, const char* plan) {
  while (*plan)
    if (*plan++ != *launch++) return false;
  while (*launch == 'O') ++launch;
  return launch[0] == 'L' && launch[1] == '\0';
}

template <int... I> struct Indices {};
template <int N, int... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I> struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

template <class P, P plan, class L, L launch> struct Unpacking;
template <class... A, int64_t (*plan)(A...), class... B, void (*launch)(B...)>
struct Unpacking<int64_t (*)(A...), plan, void (*)(B...), launch> {
  static_assert(follows(Letters<B...>::all, Letters<A...>::all),
                "launch takes what plan takes, then the outputs, then const Launch&");
  static_assert(sizeof...(B) - 1 <= kMaxArguments, "an operator has at most kMaxArguments arguments");

  static constexpr int kGiven = sizeof...(A), kAll = sizeof...(B);
  template <class Places> struct Codes;
  template <int... I> struct Codes<Indices<I...>> {
    static constexpr char all[] = {(I < kGiven ? Letters<B...>::all[I] : 'R')..., '\0'};
  };
  static constexpr const char* arguments = Codes<typename MakeIndices<kAll - 1>::type>::all;

  template <int... I> static int64_t unpack_plan(const Value* v, Indices<I...>) {
    return plan(Argument<A>::get(v + I, nullptr)...);
  }
  template <int... I> static void unpack_launch(const Value* v, const Launch* on, Indices<I...>) {
    launch(Argument<B>::get(v + I, on)...);
  }
  static int64_t call_plan(const void* given, void*) {
    return unpack_plan(static_cast<const Value*>(given), typename MakeIndices<kGiven>::type());
  }
  static void call_launch(const void* given, const void*, const Launch& on) {
    unpack_launch(static_cast<const Value*>(given), &on, typename MakeIndices<kAll>::type());
  }
};

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
#define SBHAL_REGISTER(name, version, ...)
#else
#define SBHAL_REGISTER(name, version, ...)                                                                         \
  namespace sbhal {                                                                                                \
  namespace SBHAL_ISA {                                                                                            \
  namespace {                                                                                                      \
  using name##_thunks = __VA_ARGS__;                                                                               \
  const KernelEntry name##_entry = {#name,                                                                         \
                                    version,                                                                       \
                                    SBHAL_ISA_LEVEL,                                                               \
                                    name##_thunks::arguments,                                                      \
                                    name##_thunks::call_plan,                                                      \
                                    name##_thunks::call_launch};                                                   \
  __attribute__((section("sbhal_kernels"), used, unused)) const KernelEntry* const name##_pointer = &name##_entry; \
  }                                                                                                                \
  }                                                                                                                \
  }
#endif

// SBHAL_KERNEL(name, version, Arguments), or (name, version, plan, launch) of functions that take them one by one.
#define SBHAL_KERNEL(name, ...) SBHAL_KERNEL_OF(__VA_ARGS__, SBHAL_UNPACKING, SBHAL_STRUCT, )(name, __VA_ARGS__)
#define SBHAL_KERNEL_OF(version, a, b, form, ...) form
#define SBHAL_STRUCT(name, version, arguments) SBHAL_REGISTER(name, version, Thunks<arguments>)
#define SBHAL_UNPACKING(name, version, plan, launch) \
  SBHAL_REGISTER(name, version, Unpacking<decltype(&plan), plan, decltype(&launch), launch>)
