# AMD: hipcc of ROCm, or a clang that knows HIP. SBHAL_ROCM_ARCHS: the targets of the one fat module.
include(cmake/gpu_module.cmake)
set(SBHAL_ROCM_ARCHS "gfx906;gfx90a;gfx1030" CACHE STRING "Targets to compile for")
set(SBHAL_ROCM_FLAGS "" CACHE STRING "More flags for the compiler")
find_program(SBHAL_HIPCC hipcc HINTS ENV ROCM_PATH /opt/rocm PATH_SUFFIXES bin DOC "AMD's compiler")
if(NOT SBHAL_HIPCC)
  message(FATAL_ERROR "The rocm backend needs hipcc: install ROCm and set ROCM_PATH, or -DSBHAL_HIPCC=<path>.")
endif()

set(flags -x hip -fPIC -fvisibility=hidden ${SBHAL_ROCM_FLAGS})
foreach(arch IN LISTS SBHAL_ROCM_ARCHS)
  list(APPEND flags --offload-arch=${arch})
endforeach()
find_library(SBHAL_AMDHIP amdhip64 HINTS ENV ROCM_PATH /opt/rocm PATH_SUFFIXES lib)
if(NOT SBHAL_AMDHIP)
  message(FATAL_ERROR "libamdhip64 was not found: set ROCM_PATH, or -DSBHAL_AMDHIP=<path>.")
endif()
# hipcc takes NVIDIA's compiler, where there is one, unless told otherwise
sbhal_gpu_module(rocm "${CMAKE_COMMAND};-E;env;HIP_PLATFORM=amd;${SBHAL_HIPCC}" "${flags}" "${SBHAL_AMDHIP}")

# The Python side compares them with the devices before HIP is touched.
string(REPLACE ";" "\", \"" targets "${SBHAL_ROCM_ARCHS}")
file(WRITE "${CMAKE_BINARY_DIR}/rocm/_built.py" "targets = [\"${targets}\"]\n")
install(FILES "${CMAKE_BINARY_DIR}/rocm/_built.py" DESTINATION "${SBHAL_INSTALL_DIR}/rocm")
