# find_package(spikingbrain_hal): what a backend in a package of its own is built with, from the installed sources.
# pip finds it among the installed packages; elsewhere: -Dspikingbrain_hal_DIR=$(python -m spikingbrain_hal --cmakedir).
if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  message(FATAL_ERROR "spikingbrain_hal builds on Linux, not on ${CMAKE_SYSTEM_NAME}.")
endif()
include(CMakeFindDependencyMacro)
set(PYBIND11_FINDPYTHON ON)
find_dependency(pybind11 CONFIG)
get_filename_component(SBHAL_CSRC "${CMAKE_CURRENT_LIST_DIR}/../../../csrc" ABSOLUTE)
include("${CMAKE_CURRENT_LIST_DIR}/backend.cmake")
