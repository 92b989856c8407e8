# The simulated GPU, once with each size of wavefront.
include(cmake/gpu_module.cmake)
option(SBHAL_SIM_MATRIX_UNITS "Give the wavefront of 32 a matrix unit" ON)
sbhal_simulated_module(sim _native32 32)
sbhal_simulated_module(sim _native64 64)
if(NOT SBHAL_SIM_MATRIX_UNITS)
  target_compile_definitions(sbhal_sim_native32 PRIVATE SBHAL_SIM_WITHOUT_MATRIX_UNITS)
endif()
