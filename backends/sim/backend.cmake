# The simulated GPU, once with each size of wavefront.
option(SBHAL_SIM_MATRIX_UNITS "Give the wavefront of 32 a matrix unit" ON)
foreach(wave 32 64)
  sbhal_add_backend(sim SIMULATED WAVE ${wave} MODULE _native${wave} INCLUDE "${CMAKE_CURRENT_LIST_DIR}"
                    DESTINATION "${SBHAL_BACKEND_DIR}")
endforeach()
sbhal_use_shared_sources(sim ALL)
if(NOT SBHAL_SIM_MATRIX_UNITS)
  target_compile_definitions(sbhal_sim_native32 PRIVATE SBHAL_SIM_WITHOUT_MATRIX_UNITS)
endif()
