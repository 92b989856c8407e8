#include <stdexcept>

#include "device.h"
#include "vendor.h"
#ifdef SBHAL_SIMT
#include "simt/memory.h"
#endif

namespace sbhal {
namespace {

// Whether the module holds code for a device is known by asking for a kernel.
__global__ void nothing() {}

const char* count(int* devices) {
  *devices = 0;
  return vendor::count_devices(devices);
}

}  // namespace

std::string device_problem() {
  int devices;
  if (const char* problem = count(&devices)) return problem;
  if (devices == 0) return "there is no device";
  if (const char* problem = vendor::check_kernel(reinterpret_cast<const void*>(&nothing)))
    return std::string(device_info(0).name) + ": " + problem;
  return "";
}

int device_count() {
  int devices;
  count(&devices);
  return devices;
}

Device device_info(int index) {
  Device device = {};
  if (const char* problem = vendor::describe_device(index, &device)) throw std::runtime_error(problem);
  return device;
}

int driver_version() {
  int version = 0;
  vendor::driver_version(&version);
  return version;
}

bool is_simulated() {
#ifdef SBHAL_SIMT
  return true;
#else
  return false;
#endif
}

void run_on_device(Call& call) {
#ifdef SBHAL_SIMT
  simt::run_staged(call);
#else
  call.entry->launch(call.arguments, call.planned, call.launch);
#endif
}

}  // namespace sbhal
