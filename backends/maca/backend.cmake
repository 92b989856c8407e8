# MetaX: mxcc of the SDK at MACA_PATH, or cucc of its cu-bridge (SBHAL_MACA_CU_BRIDGE); neither route has ever been run.
# Without an SDK the stand-in of this folder, which simulates such a device on the CPU.
include(cmake/gpu_module.cmake)
option(SBHAL_MACA_CU_BRIDGE "Compile with cucc instead of mxcc")
set(SBHAL_MACA_ARCHS "xcore1000" CACHE STRING "Targets to compile for, with commas between")
set(sdk "$ENV{MACA_PATH}")

if(sdk STREQUAL "")
  sbhal_simulated_module(maca _native 64 "${CMAKE_SOURCE_DIR}/backends/maca/standin")
elseif(SBHAL_MACA_CU_BRIDGE)
  find_library(SBHAL_MACA_RUNTIME runtime_cu HINTS "${sdk}/lib" REQUIRED)
  sbhal_gpu_module(maca "${sdk}/tools/cu-bridge/bin/cucc" "-x;cu;-fPIC;-fvisibility=hidden;-DSBHAL_CU_BRIDGE"
                   "${SBHAL_MACA_RUNTIME}")
else()
  find_library(SBHAL_MACA_RUNTIME mcruntime HINTS "${sdk}/lib" REQUIRED)
  sbhal_gpu_module(maca "${sdk}/mxgpu_llvm/bin/mxcc"
                   "-x;maca;--maca-path=${sdk};-offload-arch=${SBHAL_MACA_ARCHS};-fPIC;-fvisibility=hidden"
                   "${SBHAL_MACA_RUNTIME}")
endif()

# The backend's Python side must know which of the two it is without loading native code.
if(sdk STREQUAL "")
  set(simulated True)
else()
  set(simulated False)
endif()
file(WRITE "${CMAKE_BINARY_DIR}/maca/_built.py" "simulated = ${simulated}\n")
install(FILES "${CMAKE_BINARY_DIR}/maca/_built.py" DESTINATION "${SBHAL_INSTALL_DIR}/maca")
