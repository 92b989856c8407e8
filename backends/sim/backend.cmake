# The simulated GPU, once with each size of wavefront.
include(cmake/gpu_module.cmake)
sbhal_simulated_module(sim _native32 32)
sbhal_simulated_module(sim _native64 64)
