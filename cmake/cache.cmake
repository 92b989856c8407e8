# A compiler cache: ccache, where there is one that works and no other launcher was chosen; -DSBHAL_CCACHE=OFF goes without.
# Paths count from the project's root, so that copies of it share what they compile.
#
#   SBHAL_LAUNCH_GPU_COMPILER   # what goes before the compiler of kernels for a device, empty without a cache
find_program(SBHAL_CCACHE ccache DOC "Compiler cache, OFF for none")
set(SBHAL_LAUNCH_GPU_COMPILER "")
if(SBHAL_CCACHE)
  set(launch "${CMAKE_COMMAND}" -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1)
  execute_process(COMMAND ${launch} "${SBHAL_CCACHE}" "${CMAKE_CXX_COMPILER}" -x c++ -c /dev/null
                          -o "${CMAKE_BINARY_DIR}/cached.o"
                  RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)  # where its folder cannot be written
  if(NOT failed)
    if(NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
      set(CMAKE_CXX_COMPILER_LAUNCHER ${launch} "${SBHAL_CCACHE}")
    endif()
    # Such a compiler reads a source once for each device, and stands behind a script: what it included decides, not
    # one preprocessed text, and its version, not the script's date.
    set(SBHAL_LAUNCH_GPU_COMPILER ${launch} CCACHE_DEPEND=1 "CCACHE_COMPILERCHECK=%compiler% --version" "${SBHAL_CCACHE}")
  endif()
endif()
