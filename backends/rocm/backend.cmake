# AMD GPUs.
sbhal_find_hipcc(toolchain)
sbhal_add_backend(rocm GPU ${toolchain} INCLUDE "${CMAKE_CURRENT_LIST_DIR}" DESTINATION "${SBHAL_BACKEND_DIR}")
sbhal_use_shared_sources(rocm ALL)
