# The simulated GPU, once with each size of wavefront.
set(SBHAL_SIM_WAVES "32;64" CACHE STRING "Sizes of the wavefront to build the simulated GPU with, 32 and 64")
option(SBHAL_SIM_MATRIX_UNITS "Give the wavefront of 32 a matrix unit" ON)
foreach(wave IN LISTS SBHAL_SIM_WAVES)
  sbhal_add_backend(sim SIMULATED WAVE ${wave} MODULE _native${wave} INCLUDE "${CMAKE_CURRENT_LIST_DIR}"
                    DESTINATION "${SBHAL_BACKEND_DIR}")
endforeach()
sbhal_use_shared_sources(sim ALL)
if(TARGET sbhal_sim_native32 AND NOT SBHAL_SIM_MATRIX_UNITS)
  target_compile_definitions(sbhal_sim_native32 PRIVATE SBHAL_SIM_WITHOUT_MATRIX_UNITS)
endif()
