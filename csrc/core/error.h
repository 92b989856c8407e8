// The exception that fail() throws. Included only by files compiled once, so its symbols exist once.
#pragma once
#include <stdexcept>
#include <string>

#include "check.h"

namespace sbhal {

struct KernelError : std::runtime_error {
  Error kind;
  KernelError(Error error, const std::string& text) : std::runtime_error(text), kind(error) {}
};

}  // namespace sbhal
