// The devices of a GPU module, for code that no vendor's compiler reads.
#pragma once
#include <cstdint>
#include <string>

#include "core/arguments.h"
#include "properties.h"

namespace sbhal {

// Why this module can use no device, empty if it can.
std::string device_problem();

int device_count();

// Raises std::runtime_error if there is no such device.
Device device_info(int index);

int driver_version();

bool is_simulated();

void run_on_device(Call& call);

}  // namespace sbhal
