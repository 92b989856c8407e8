# How a GPU backend is built from csrc/ops/*_gpu.hip, csrc/gpu and the vendor.h of its folder.
file(GLOB SBHAL_GPU_KERNELS CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/csrc/ops/*_gpu.hip")
list(APPEND SBHAL_GPU_KERNELS "${CMAKE_SOURCE_DIR}/csrc/gpu/device.hip")
set(SBHAL_GPU_DEFINES SBHAL_GPU SBHAL_ISA=gpu SBHAL_ISA_LEVEL=0)

# What no vendor's compiler needs to read: the Python module of `target`, named `module`, installed in backends/<backend>.
function(sbhal_python_module target backend module)
  pybind11_add_module(${target} MODULE NO_EXTRAS csrc/gpu/module.cpp csrc/core/calls.cpp csrc/core/framework.cpp
                      csrc/core/check.cpp)
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${module}
                                             LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/${backend}")
  target_include_directories(${target} PRIVATE "${CMAKE_SOURCE_DIR}/csrc")
  target_compile_definitions(${target} PRIVATE SBHAL_MODULE=${module})
  install(TARGETS ${target} LIBRARY DESTINATION "${SBHAL_INSTALL_DIR}/${backend}")
endfunction()

# A module for real devices: every kernel file is compiled by `compiler` with `flags`, as one more language would need a
# compiler that CMake knows. More arguments are what to link.
function(sbhal_gpu_module backend compiler flags)
  set(target sbhal_${backend})
  sbhal_python_module(${target} ${backend} _native)
  list(TRANSFORM SBHAL_GPU_DEFINES PREPEND -D OUTPUT_VARIABLE defines)
  foreach(source IN LISTS SBHAL_GPU_KERNELS)
    get_filename_component(name "${source}" NAME_WE)
    set(object "${CMAKE_BINARY_DIR}/${backend}/${name}.o")
    add_custom_command(
      OUTPUT "${object}"
      COMMAND ${compiler} ${flags} -std=c++17 -O3 ${defines} -I${CMAKE_SOURCE_DIR}/csrc
              -I${CMAKE_SOURCE_DIR}/backends/${backend} -MD -MF ${object}.d -c ${source} -o ${object}
      DEPENDS "${source}"
      DEPFILE "${object}.d"
      COMMENT "Building ${backend} object ${name}"
      VERBATIM)
    target_sources(${target} PRIVATE "${object}")
    set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  endforeach()
  file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/${backend}")
  target_link_libraries(${target} PRIVATE ${ARGN})
endfunction()

# A module for a device that csrc/simt runs on this machine's processor, with the given wavefront. More arguments are
# further include directories. Kernels keep line tables, so that a sanitizer can name their lines.
function(sbhal_simulated_module backend module wave)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  set(target sbhal_${backend}${module})
  sbhal_python_module(${target} ${backend} ${module})
  file(GLOB simt CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/csrc/simt/*.cpp")
  set_source_files_properties(${SBHAL_GPU_KERNELS} PROPERTIES LANGUAGE CXX)
  target_sources(${target} PRIVATE ${SBHAL_GPU_KERNELS} ${simt})
  target_include_directories(${target} PRIVATE "${CMAKE_SOURCE_DIR}/backends/${backend}" ${ARGN})
  target_compile_definitions(${target} PRIVATE ${SBHAL_GPU_DEFINES} SBHAL_SIMT_WAVE=${wave})
  target_compile_options(${target} PRIVATE -g1 -Wall -Wextra -Wno-unknown-pragmas)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    target_compile_options(${target} PRIVATE -march=x86-64-v3)
  endif()
  target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
  if(SBHAL_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${SBHAL_SANITIZE} -fno-sanitize-recover=undefined -O1)
    target_link_options(${target} PRIVATE -fsanitize=${SBHAL_SANITIZE})
  endif()
endfunction()
