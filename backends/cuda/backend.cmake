# NVIDIA GPUs.
sbhal_find_nvcc(toolchain)
sbhal_add_backend(cuda GPU ${toolchain} INCLUDE "${CMAKE_CURRENT_LIST_DIR}" DESTINATION "${SBHAL_BACKEND_DIR}")
sbhal_use_shared_sources(cuda ALL)
