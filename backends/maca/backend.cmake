# MetaX: mxcc of the SDK at MACA_PATH, or cucc of its cu-bridge (SBHAL_MACA_CU_BRIDGE); neither route has ever been run.
# Without an SDK the stand-in of this folder, which simulates such a device on the CPU.
option(SBHAL_MACA_CU_BRIDGE "Compile with cucc instead of mxcc")
set(SBHAL_MACA_ARCHS "xcore1000" CACHE STRING "Targets to compile for, with commas between")
set(sdk "$ENV{MACA_PATH}")

if(sdk STREQUAL "")
  set(kind SIMULATED WAVE 64 INCLUDE "${CMAKE_CURRENT_LIST_DIR}" "${CMAKE_CURRENT_LIST_DIR}/standin")
  set(simulated True)
else()
  if(SBHAL_MACA_CU_BRIDGE)
    find_library(SBHAL_MACA_RUNTIME runtime_cu HINTS "${sdk}/lib" REQUIRED)
    set(compiler "${sdk}/tools/cu-bridge/bin/cucc" FLAGS -x cu -DSBHAL_CU_BRIDGE)
  else()
    find_library(SBHAL_MACA_RUNTIME mcruntime HINTS "${sdk}/lib" REQUIRED)
    set(compiler "${sdk}/mxgpu_llvm/bin/mxcc" FLAGS -x maca --maca-path=${sdk} -offload-arch=${SBHAL_MACA_ARCHS})
  endif()
  set(kind GPU COMPILER ${compiler} -fPIC -fvisibility=hidden LINK "${SBHAL_MACA_RUNTIME}"
      INCLUDE "${CMAKE_CURRENT_LIST_DIR}")
  set(simulated False)
endif()
sbhal_add_backend(maca ${kind} DESTINATION "${SBHAL_BACKEND_DIR}")
sbhal_use_shared_sources(maca ALL)

# The backend's Python side must know which of the two it is without loading native code.
file(WRITE "${CMAKE_BINARY_DIR}/maca/_built.py" "simulated = ${simulated}\n")
install(FILES "${CMAKE_BINARY_DIR}/maca/_built.py" DESTINATION "${SBHAL_BACKEND_DIR}")
