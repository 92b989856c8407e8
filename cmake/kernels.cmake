# How kernels are compiled for each kind of backend; sbhal_add_backend() and sbhal_use_shared_sources() call this.
set(SBHAL_SANITIZE "" CACHE STRING "Sanitizers for modules that run on this machine's processor, as for -fsanitize=")
set(SBHAL_ISAS portable avx2 avx512 avx512_bf16)  # each is more than the one before it; csrc/core/isa.cpp chooses
set(SBHAL_CPU_ISAS "${SBHAL_ISAS}" CACHE STRING "Those to compile for; the portable one always is")
set(SBHAL_GPU_DEFINES SBHAL_GPU SBHAL_ISA=gpu SBHAL_ISA_LEVEL=0)

function(sbhal_add_kernels target)
  get_target_property(kind ${target} SBHAL_KIND)
  foreach(source IN LISTS ARGN)
    get_filename_component(source "${source}" ABSOLUTE)
    if(kind STREQUAL "HOST")
      sbhal_add_host_kernel(${target} "${source}")
    elseif(kind STREQUAL "GPU")
      sbhal_add_gpu_kernel(${target} "${source}")
    else()
      set_source_files_properties("${source}" PROPERTIES LANGUAGE CXX)
      target_sources(${target} PRIVATE "${source}")
    endif()
  endforeach()
endfunction()

# Every file of a module: the language, and no symbol that another module could see.
macro(sbhal_compile_as_ours target)
  set_target_properties(${target} PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON POSITION_INDEPENDENT_CODE ON
                                             CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_include_directories(${target} PRIVATE "${SBHAL_CSRC}")
endmacro()

macro(sbhal_sanitize target)
  if(SBHAL_SANITIZE)  # at -O1: instrumented kernels take minutes to compile otherwise
    target_compile_options(${target} PRIVATE -fsanitize=${SBHAL_SANITIZE} -fno-sanitize-recover=undefined -g1 -O1)
    target_link_options(${target} PRIVATE -fsanitize=${SBHAL_SANITIZE})
  endif()
endmacro()

# ---- processors

function(sbhal_prepare_host target every_isa)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
  sbhal_sanitize(${target})
  set(names portable)
  if(every_isa AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    foreach(isa IN LISTS SBHAL_CPU_ISAS)
      if(NOT isa IN_LIST SBHAL_ISAS)
        sbhal_suggest("${isa}" "${SBHAL_ISAS}" suggestion)
        list(JOIN SBHAL_ISAS ", " known)
        message(FATAL_ERROR "SBHAL_CPU_ISAS: there is no instruction set '${isa}'.${suggestion} Known ones: ${known}.")
      endif()
    endforeach()
    list(APPEND names ${SBHAL_CPU_ISAS})
    list(REMOVE_DUPLICATES names)
  endif()
  set_property(TARGET ${target} PROPERTY SBHAL_ISA_NAMES ${names})
endfunction()

# Each instruction set is a library of objects, made with its first kernel.
function(sbhal_add_host_kernel target source)
  set(flags_portable "")
  set(flags_avx2 -march=x86-64-v3)
  set(flags_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
  set(flags_avx512_bf16 ${flags_avx512} -mavx512bf16 -mavx512vnni)
  get_target_property(names ${target} SBHAL_ISA_NAMES)
  foreach(isa IN LISTS names)
    set(objects ${target}_${isa})
    if(NOT TARGET ${objects})
      list(FIND SBHAL_ISAS ${isa} level)
      add_library(${objects} OBJECT)
      sbhal_compile_as_ours(${objects})
      target_compile_definitions(${objects} PRIVATE SBHAL_ISA=${isa} SBHAL_ISA_LEVEL=${level})
      target_compile_options(${objects} PRIVATE
        -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fno-rtti
        -fno-exceptions -fasynchronous-unwind-tables  # a refusal is thrown through these frames, never in them
        -Wall -Wextra -Wno-maybe-uninitialized ${flags_${isa}})
      target_link_libraries(${objects} PRIVATE OpenMP::OpenMP_CXX)
      sbhal_sanitize(${objects})
      target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
    endif()
    target_sources(${objects} PRIVATE "${source}")
  endforeach()
endfunction()

# ---- devices. The two that prepare a module read the arguments of sbhal_add_backend(), which calls them.

function(sbhal_prepare_gpu target)
  list(TRANSFORM SBHAL_GPU_DEFINES PREPEND -D OUTPUT_VARIABLE defines)
  list(TRANSFORM arg_INCLUDE PREPEND -I OUTPUT_VARIABLE include)
  set_property(TARGET ${target} PROPERTY SBHAL_COMMAND ${arg_COMPILER} ${arg_FLAGS} -std=c++17 -O3 ${defines}
                                                       -I${SBHAL_CSRC} ${include})
  sbhal_add_gpu_kernel(${target} "${SBHAL_CSRC}/gpu/device.hip")
  if(arg_TARGETS)  # compared with the devices before the runtime is touched
    string(REPLACE ";" "\", \"" targets "${arg_TARGETS}")
    file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/${name}/_built.py" "targets = [\"${targets}\"]\n")
    install(FILES "${CMAKE_CURRENT_BINARY_DIR}/${name}/_built.py" DESTINATION "${arg_DESTINATION}")
  endif()
endfunction()

function(sbhal_add_gpu_kernel target source)
  get_target_property(command ${target} SBHAL_COMMAND)
  get_target_property(backend ${target} SBHAL_BACKEND)
  get_filename_component(name "${source}" NAME_WE)
  set(object "${CMAKE_CURRENT_BINARY_DIR}/${backend}/${name}.o")
  file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/${backend}")
  add_custom_command(
    OUTPUT "${object}"
    COMMAND ${command} -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS "${source}"
    DEPFILE "${object}.d"
    COMMENT "Building ${backend} object ${name}"
    VERBATIM)
  target_sources(${target} PRIVATE "${object}")
  set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
endfunction()

# csrc/simt runs the device on this machine's processor. Kernels keep line tables, so that a sanitizer can name lines.
function(sbhal_prepare_simulated target)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
  target_include_directories(${target} PRIVATE ${arg_INCLUDE})
  target_compile_definitions(${target} PRIVATE ${SBHAL_GPU_DEFINES} SBHAL_SIMT_WAVE=${arg_WAVE})
  target_compile_options(${target} PRIVATE -g1 -Wall -Wextra -Wno-unknown-pragmas)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    target_compile_options(${target} PRIVATE -march=x86-64-v3)
  endif()
  sbhal_sanitize(${target})
  file(GLOB simt CONFIGURE_DEPENDS "${SBHAL_CSRC}/simt/*.cpp")
  sbhal_add_kernels(${target} ${simt} "${SBHAL_CSRC}/gpu/device.hip")
endfunction()
