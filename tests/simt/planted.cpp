// Kernels that are wrong on purpose, one fault each, and right ones: what the simulated device must catch and must let
// pass. `planted NAME` runs one and prints `right`, `wrong: ...` or `error: ...`; after an error it runs a right kernel
// and prints `recovered`. Lines that a report has to name are marked with the kernel's name in angle brackets.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "core/error.h"
#include "gpu/gpu.h"
#include "gpu/mma.h"
#include "simt/memory.h"

namespace sbhal {
namespace SBHAL_ISA {
namespace {

constexpr int kThreads = 256;

SBHAL_INLINE float* floats(const Tensor& t) { return static_cast<float*>(t.data); }

// ---- right

// Each thread takes its neighbour's value, twice through one array.
__global__ void rotate(Tensor x, Tensor y) {
  const float* const in = floats(x);
  float* const out = floats(y);
  SBHAL_SHARED(float, values, kThreads);
  float value = in[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    values[threadIdx.x] = value;
    __syncthreads();
    value = values[(threadIdx.x + 1) % kThreads];
    __syncthreads();
  }
  out[blockIdx.x * kThreads + threadIdx.x] = value;
}

// What lanes do together: a sum, a vote, a shift, an exchange through memory.
__global__ void lanes(Tensor, Tensor y) {
  float* const out = floats(y);
  SBHAL_SHARED(float, values, kThreads);
  const float ones = wave_sum(1.f), top = wave_max(static_cast<float>(lane()));
  const uint64_t odd = ballot(lane() % 2 == 1);
  const float below = shuffle(static_cast<float>(lane()), max(lane() - 1, 0));
  values[threadIdx.x] = static_cast<float>(lane());
  wave_sync();
  const float other = values[threadIdx.x ^ 1];
  const bool right = ones == SBHAL_WAVE && top == SBHAL_WAVE - 1 && odd == 0xaaaaaaaaaaaaaaaa >> (64 - SBHAL_WAVE) &&
                     below == (lane() ? lane() - 1 : 0) && other == (lane() ^ 1);
  out[threadIdx.x] = right ? 1.f : 0.f;
}

// A wavefront squares a matrix of small integers.
template <class T> __global__ void tiles(Tensor, Tensor y) {
  float* const out = floats(y);
  SBHAL_SHARED(T, matrix, 16 * 16);
  const int thread = static_cast<int>(threadIdx.x);
  matrix[thread] = from_float<T>(static_cast<float>(thread / 16 - thread % 16));
  __syncthreads();
  MmaTile<T> tile;
  tile.zero();
  tile.multiply(matrix, 16, matrix, 16);
  if (wave() == 0) tile.each([&](int row, int column, float value) { out[row * 16 + column] = value; });
}

// Blocks share a counter.
__global__ void counter(Tensor, Tensor y) {
  atomicAdd(static_cast<unsigned*>(y.data), 1u);
  atomicMax(static_cast<int*>(y.data) + 1, static_cast<int>(threadIdx.x));
}

// ---- races

__global__ void missing_barrier(Tensor x, Tensor y) {
  const float* const in = floats(x);
  float* const out = floats(y);
  SBHAL_SHARED(float, values, kThreads);
  values[threadIdx.x] = in[threadIdx.x];                               // <missing_barrier>
  out[threadIdx.x] = values[(threadIdx.x + kThreads / 2) % kThreads];  // <missing_barrier>
}

__global__ void reused_array(Tensor x, Tensor y) {
  const float* const in = floats(x);
  float* const out = floats(y);
  SBHAL_SHARED(float, values, kThreads);
  float value = in[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    values[threadIdx.x] = value;  // <reused_array>
    __syncthreads();
    value = values[(threadIdx.x + 1) % kThreads];  // <reused_array>
  }
  out[threadIdx.x] = value;
}

__global__ void lockstep(Tensor x, Tensor y) {
  const float* const in = floats(x);
  float* const out = floats(y);
  SBHAL_SHARED(float, values, kThreads);
  values[threadIdx.x] = in[threadIdx.x];       // <lockstep>
  out[threadIdx.x] = values[threadIdx.x ^ 1];  // <lockstep>
}

// Right here, but a shuffle is no promise that memory was written.
__global__ void shuffle_order(Tensor x, Tensor y) {
  const float* const in = floats(x);
  float* const out = floats(y);
  SBHAL_SHARED(float, values, kThreads);
  values[threadIdx.x] = in[threadIdx.x];  // <shuffle_order>
  const float nothing = wave_sum(0.f);
  out[threadIdx.x] = values[threadIdx.x ^ 1] + nothing;  // <shuffle_order>
}

__global__ void blocks(Tensor, Tensor y) {
  float* const out = floats(y);
  if (threadIdx.x == 0) out[0] += 1;  // <blocks>
}

// Ordered within each block, but not between blocks: only what the first block does before its barrier and the second
// after its own tells.
__global__ void late_blocks(Tensor, Tensor y) {
  float* const out = floats(y);
  if (blockIdx.x == 0 && threadIdx.x == 0) out[0] = 1;  // <late_blocks>
  __syncthreads();
  if (blockIdx.x == 1 && threadIdx.x == 64) out[0] = 2;  // <late_blocks>
}

// ---- memory

__global__ void shared_bounds(Tensor x, Tensor y) {
  const float* const in = floats(x);
  float* const out = floats(y);
  SBHAL_SHARED(float, values, kThreads);      // <shared_bounds>
  values[threadIdx.x + 1] = in[threadIdx.x];  // <shared_bounds>
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x ^ 2];
}

__global__ void global_write(Tensor, Tensor y) {
  float* const out = floats(y);
  if (static_cast<int64_t>(threadIdx.x) <= y.shape[0]) out[threadIdx.x] = 1;  // <global_write>
}

__global__ void global_read(Tensor x, Tensor y) {
  const float* const in = floats(x);
  float* const out = floats(y);
  out[threadIdx.x] = in[threadIdx.x + 1];  // <global_read>
}

__global__ void workspace_bounds(Tensor, Tensor, char* workspace, int64_t bytes) {
  if (threadIdx.x == 0) workspace[bytes] = 1;  // <workspace_bounds>
}

__global__ void uninitialised(Tensor x, Tensor y) {
  const float* const in = floats(x);
  float* const out = floats(y);
  SBHAL_SHARED(float, values, kThreads);
  if (threadIdx.x != 7) values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void too_much_shared(Tensor, Tensor y) {
  float* const out = floats(y);
  SBHAL_SHARED(float, first, 8000);
  SBHAL_SHARED(float, second, 8000);  // <too_much_shared>
  first[threadIdx.x] = second[threadIdx.x] = 0;
  out[threadIdx.x] = 0;
}

// ---- divergence

__global__ void barrier_divergence(Tensor, Tensor y) {
  float* const out = floats(y);
  if (threadIdx.x < 128) {
    __syncthreads();  // <barrier_divergence>
  } else {
    __syncthreads();  // <barrier_divergence>
  }
  out[threadIdx.x] = 0;
}

__global__ void wave_divergence(Tensor, Tensor y) {
  float* const out = floats(y);
  float value = static_cast<float>(threadIdx.x);
  if (lane() % 2)
    value += shuffle_xor(value, 2);  // <wave_divergence>
  else
    value += shuffle_xor(value, 4);  // <wave_divergence>
  out[threadIdx.x] = value;
}

__global__ void operation_divergence(Tensor, Tensor y) {
  float* const out = floats(y);
  float value = static_cast<float>(threadIdx.x);
  if (lane() < 16)
    wave_sync();  // <operation_divergence>
  else
    value = ballot(true) ? 1.f : 0.f;  // <operation_divergence>
  out[threadIdx.x] = value;
}

__global__ void returned_lane(Tensor, Tensor y) {
  float* const out = floats(y);
  if (threadIdx.x >= 250) return;
  out[threadIdx.x] = shuffle_xor(1.f, 8);  // <returned_lane>
}

__global__ void returned_thread(Tensor, Tensor y) {
  float* const out = floats(y);
  if (threadIdx.x == 0) return;
  __syncthreads();  // <returned_thread>
  out[threadIdx.x] = 0;
}

__global__ void deadlock(Tensor, Tensor y) {
  float* const out = floats(y);
  float value = 0;
  if (lane() < 16)
    __syncthreads();  // <deadlock>
  else
    value = shuffle_xor(1.f, 16);  // <deadlock>
  out[threadIdx.x] = value;
}

__global__ void far_lane(Tensor, Tensor y) {
  float* const out = floats(y);
  out[threadIdx.x] = shuffle(1.f, SBHAL_WAVE);  // <far_lane>
}

// ---- the wavefront's size

__global__ void mask32(Tensor, Tensor y) {
  float* const out = floats(y);
  const auto mask = static_cast<uint32_t>(ballot(lane() >= SBHAL_WAVE / 2));
  out[threadIdx.x] = static_cast<float>(__builtin_popcount(mask));
}

__global__ void wave32(Tensor x, Tensor y) {
  const float* const in = floats(x);
  float* const out = floats(y);
  float value = in[threadIdx.x];
  if (threadIdx.x < 32) value = wave_sum<32>(value);  // <wave32>
  if (threadIdx.x == 0) out[0] = value;
}

// ---- the cases

using Kernel = void (*)(Tensor, Tensor);

struct Case {
  const char* name;
  Kernel kernel;
  int64_t blocks, inputs, outputs;
  float (*expected)(int);
};

float zero(int) { return 0; }
float one(int) { return 1; }
float two(int) { return 2; }
float itself(int i) { return static_cast<float>(i); }
float next(int i) { return static_cast<float>((i + 1) % kThreads); }
float after_next(int i) { return static_cast<float>((i + 2) % kThreads); }
float opposite(int i) { return static_cast<float>((i + kThreads / 2) % kThreads); }
float partner(int i) { return static_cast<float>(i ^ 1); }
float half_wave(int) { return SBHAL_WAVE / 2; }
float first_sum(int i) { return i ? 0 : 31 * 32 / 2; }
float square(int i) {
  int sum = 0;
  for (int k = 0; k < 16; ++k) sum += (i / 16 - k) * (k - i % 16);
  return static_cast<float>(sum);
}
float counted(int i) {
  const uint32_t bits = i == 0 ? 4 * kThreads : i == 1 ? kThreads - 1 : 0;
  return vendor::as_float(bits);
}

const Case kCases[] = {
    {"rotate", rotate, 1, 256, 256, after_next},
    {"rotate_blocks", rotate, 4, 256, 1024, after_next},
    {"lanes", lanes, 1, 1, 256, one},
    {"tiles_f32", tiles<float>, 1, 1, 256, square},
    {"tiles_bf16", tiles<bf16>, 1, 1, 256, square},
    {"tiles_f16", tiles<f16>, 1, 1, 256, square},
    {"counter", counter, 4, 1, 4, counted},
    {"missing_barrier", missing_barrier, 1, 256, 256, opposite},
    {"reused_array", reused_array, 1, 256, 256, after_next},
    {"lockstep", lockstep, 1, 256, 256, partner},
    {"shuffle_order", shuffle_order, 1, 256, 256, partner},
    {"blocks", blocks, 2, 1, 1, two},
    {"late_blocks", late_blocks, 2, 1, 1, two},
    {"shared_bounds", shared_bounds, 1, 256, 256, zero},
    {"global_write", global_write, 1, 1, 254, one},
    {"global_read", global_read, 1, 256, 256, next},
    {"workspace_bounds", nullptr, 1, 1, 1, zero},
    {"uninitialised", uninitialised, 1, 256, 256, itself},
    {"too_much_shared", too_much_shared, 1, 1, 256, zero},
    {"barrier_divergence", barrier_divergence, 1, 1, 256, zero},
    {"wave_divergence", wave_divergence, 1, 1, 256, zero},
    {"operation_divergence", operation_divergence, 1, 1, 256, zero},
    {"returned_lane", returned_lane, 1, 1, 256, zero},
    {"returned_thread", returned_thread, 1, 1, 256, zero},
    {"deadlock", deadlock, 1, 1, 256, zero},
    {"far_lane", far_lane, 1, 1, 256, zero},
    {"mask32", mask32, 1, 1, 256, half_wave},
    {"wave32", wave32, 1, 256, 256, first_sum},
    {"host_read", nullptr, 1, 1, 1, zero},
};

const Case* chosen;

SBHAL_ARGUMENTS(Planted, Tensor x; Output y;)

struct Plan {
  int64_t workspace_bytes;
};

Plan plan(const Planted&) { return {40}; }

void launch(const Planted& a, const Plan&, const Launch& launch) {
  const Tensor &x = a.x, &y = a.y;
  if (!std::strcmp(chosen->name, "host_read"))
    std::printf("the host reads %g\n", static_cast<double>(*static_cast<float*>(x.data)));  // <host_read>
  else if (!std::strcmp(chosen->name, "workspace_bounds"))
    launch_kernel(chosen->name, workspace_bounds, 1, 64, launch, x, y, launch.workspace, launch.workspace_bytes);
  else
    launch_kernel(chosen->name, chosen->kernel, chosen->blocks, kThreads, launch, x, y);
}

Tensor tensor(std::vector<float>& data) {
  Tensor t = {};
  t.data = data.data(), t.dtype = DType::f32, t.ndim = 1, t.shape[0] = static_cast<int64_t>(data.size()),
  t.stride[0] = 1;
  return t;
}

// Prints what became of it; false for an error.
bool run(const Case& item) {
  chosen = &item;
  std::vector<float> x(item.inputs), y(item.outputs, 0.f), workspace(256);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  Planted arguments = {tensor(x), {tensor(y)}};
  const auto address = (reinterpret_cast<uintptr_t>(workspace.data()) + 255) / 256 * 256;
  using Taken = Thunks<Planted>;
  const KernelEntry entry = {"planted", 1, 0, Taken::arguments, Taken::call_plan, Taken::call_launch};
  const Fields fields = fields_of(entry.arguments);
  Plan planned;
  Call call = {&entry, &fields, &arguments, &planned, 0, {reinterpret_cast<char*>(address), 256, 0, 2}};
  try {
    call.workspace_bytes = entry.plan(&arguments, &planned);
    simt::run_staged(call);
  } catch (const KernelError& error) {
    std::printf("error: %s\n", error.what());
    return false;
  }
  for (size_t i = 0; i < y.size(); ++i) {
    const float expected = item.expected(static_cast<int>(i));
    if (std::memcmp(&y[i], &expected, 4) == 0) continue;
    std::printf("wrong: element %zu is %g, expected %g\n", i, static_cast<double>(y[i]), static_cast<double>(expected));
    return true;
  }
  std::printf("right\n");
  return true;
}

}  // namespace
}  // namespace SBHAL_ISA
}  // namespace sbhal

int main(int count, char** arguments) {
  using namespace sbhal::SBHAL_ISA;
  for (const Case& item : kCases) {
    if (count != 2 || std::strcmp(item.name, arguments[1])) continue;
    if (!run(item)) {
      for (int i = 0; i < 3; ++i)
        if (!run(kCases[0])) return 1;
      std::printf("recovered\n");
    }
    return 0;
  }
  std::printf("usage: planted NAME\n");
  return 2;
}
