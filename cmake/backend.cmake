# How a backend is built: here, and in a package of its own after find_package(spikingbrain_hal).
#
#   sbhal_add_backend(<name> HOST | GPU | SIMULATED
#     DESTINATION <folder>   # of the Python package that the native module is installed into
#     MODULE <module>        # name of the native module, _native if absent
#     SOURCES <file>...      # the backend's own kernels
#     LINK <library>...
#     EVERY_ISA              # HOST: kernels for each instruction set, one of which is chosen at run time
#     INCLUDE <folder>...    # GPU, SIMULATED: where vendor.h is; the current source folder if absent
#     COMPILER <command>...  # GPU: what reads kernels, as one more language would need a compiler that CMake knows
#     FLAGS <flag>...        # GPU: what it is told
#     TARGETS <name>...      # GPU: devices that the code is for, where others must not touch it
#     WAVE 32 | 64)          # SIMULATED: lanes of a wavefront
#
#   sbhal_use_shared_sources(<name> ALL | <operator>...)   # kernels that come with spikingbrain_hal
#
# SBHAL_CSRC is where the sources are.
include("${CMAKE_CURRENT_LIST_DIR}/suggest.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/cache.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/compilers.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/kernels.cmake")

function(sbhal_add_backend name kind)
  cmake_parse_arguments(PARSE_ARGV 2 arg "EVERY_ISA" "DESTINATION;MODULE;WAVE"
                        "SOURCES;LINK;INCLUDE;COMPILER;FLAGS;TARGETS")
  if(NOT kind MATCHES "^(HOST|GPU|SIMULATED)$")
    message(FATAL_ERROR "sbhal_add_backend: '${name}' is ${kind}, expected HOST, GPU or SIMULATED.")
  endif()
  set(needed DESTINATION)
  if(kind STREQUAL "GPU")
    list(APPEND needed COMPILER)
  elseif(kind STREQUAL "SIMULATED")
    list(APPEND needed WAVE)
  endif()
  foreach(word IN LISTS needed)
    if(NOT arg_${word})
      message(FATAL_ERROR "sbhal_add_backend: '${name}', which is ${kind}, needs ${word}.")
    endif()
  endforeach()
  if(kind STREQUAL "SIMULATED" AND NOT arg_WAVE MATCHES "^(32|64)$")
    message(FATAL_ERROR "sbhal_add_backend: '${name}' has a WAVE of ${arg_WAVE}, expected 32 or 64.")
  endif()
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "sbhal_add_backend: '${name}' has arguments that mean nothing: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_MODULE)
    set(arg_MODULE _native)
  endif()
  if(NOT arg_INCLUDE)
    set(arg_INCLUDE "${CMAKE_CURRENT_SOURCE_DIR}")
  endif()

  # Several modules make a backend like `sim`.
  set(target sbhal_${name})
  if(NOT arg_MODULE STREQUAL "_native")
    string(APPEND target ${arg_MODULE})
  endif()
  set_property(GLOBAL APPEND PROPERTY SBHAL_MODULES_OF_${name} ${target})
  set(bridge core/calls.cpp core/framework.cpp core/check.cpp)
  if(kind STREQUAL "HOST")
    list(APPEND bridge core/module.cpp core/isa.cpp)
    set(optimization "")
  else()
    list(APPEND bridge gpu/module.cpp)
    set(optimization NO_EXTRAS)  # kernels do the work
  endif()
  list(TRANSFORM bridge PREPEND "${SBHAL_CSRC}/")
  pybind11_add_module(${target} MODULE ${optimization} ${bridge})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${arg_MODULE}
                                             LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/${name}"
                                             SBHAL_KIND ${kind} SBHAL_BACKEND ${name})
  target_compile_definitions(${target} PRIVATE SBHAL_MODULE=${arg_MODULE})
  target_link_libraries(${target} PRIVATE ${arg_LINK})
  sbhal_compile_as_ours(${target})
  install(TARGETS ${target} LIBRARY DESTINATION "${arg_DESTINATION}")

  if(kind STREQUAL "HOST")
    sbhal_prepare_host(${target} ${arg_EVERY_ISA})
  elseif(kind STREQUAL "GPU")
    sbhal_prepare_gpu(${target})
  else()
    sbhal_prepare_simulated(${target})
  endif()
  sbhal_add_kernels(${target} ${arg_SOURCES})
endfunction()

function(sbhal_use_shared_sources name)
  get_property(targets GLOBAL PROPERTY SBHAL_MODULES_OF_${name})
  if(NOT targets)
    message(FATAL_ERROR "sbhal_use_shared_sources: there is no backend '${name}'; sbhal_add_backend comes first.")
  endif()
  if(NOT ARGN)
    message(FATAL_ERROR "sbhal_use_shared_sources: '${name}' gets no kernels; name operators, or ALL.")
  endif()
  foreach(target IN LISTS targets)
    get_target_property(kind ${target} SBHAL_KIND)
    set(suffix _gpu.hip)
    if(kind STREQUAL "HOST")
      set(suffix _cpu.cpp)
    endif()
    file(GLOB sources CONFIGURE_DEPENDS "${SBHAL_CSRC}/ops/*/*${suffix}")
    if(NOT "${ARGN}" STREQUAL "ALL")
      sbhal_choose_sources("${sources}" "${suffix}" "${ARGN}" sources)
    endif()
    sbhal_add_kernels(${target} ${sources})
  endforeach()
endfunction()

# Those of the files `known` that hold the operators' forwards and backwards.
function(sbhal_choose_sources known suffix operators out)
  set(chosen "")
  foreach(operator IN LISTS operators)
    string(REGEX REPLACE "_$" "" name "${operator}")
    set(found ${known})
    list(FILTER found INCLUDE REGEX "/${name}(_backward)?${suffix}$")
    if(NOT found)
      set(names ${known})
      list(FILTER names EXCLUDE REGEX "_backward${suffix}$")
      list(TRANSFORM names REPLACE ".*/(.*)${suffix}$" "\\1")
      list(SORT names)
      sbhal_suggest("${name}" "${names}" suggestion)
      list(JOIN names ", " names)
      message(FATAL_ERROR "sbhal_use_shared_sources: there are no kernels of '${operator}'.${suggestion} "
                          "Known operators: ${names}; or ALL.")
    endif()
    list(APPEND chosen ${found})
  endforeach()
  set(${out} "${chosen}" PARENT_SCOPE)
endfunction()
