# The CPU module: every csrc/ops/*_cpu.cpp compiled once per instruction set, one of which is chosen at run time.
find_package(OpenMP REQUIRED COMPONENTS CXX)

pybind11_add_module(sbhal_cpu MODULE csrc/core/module.cpp csrc/core/framework.cpp csrc/core/isa.cpp csrc/core/check.cpp
                    csrc/core/calls.cpp)
set_target_properties(sbhal_cpu PROPERTIES OUTPUT_NAME _native LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/cpu")
target_link_libraries(sbhal_cpu PRIVATE OpenMP::OpenMP_CXX)

set(isa_names portable)
set(isa_flags_portable "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(APPEND isa_names avx2 avx512 avx512_bf16)
  set(isa_flags_avx2 -march=x86-64-v3)
  set(isa_flags_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
  set(isa_flags_avx512_bf16 -march=x86-64-v4 -mprefer-vector-width=512 -mavx512bf16 -mavx512vnni)
endif()

file(GLOB cpu_kernels CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/csrc/ops/*_cpu.cpp")
set(level 0)
foreach(isa IN LISTS isa_names)
  add_library(sbhal_cpu_${isa} OBJECT ${cpu_kernels})
  target_include_directories(sbhal_cpu_${isa} PRIVATE "${CMAKE_SOURCE_DIR}/csrc")
  target_compile_definitions(sbhal_cpu_${isa} PRIVATE SBHAL_ISA=${isa} SBHAL_ISA_LEVEL=${level})

  target_compile_options(sbhal_cpu_${isa} PRIVATE
    -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fno-rtti
    -fno-exceptions -fasynchronous-unwind-tables  # a refusal is thrown through these frames, never in them
    -Wall -Wextra -Wno-maybe-uninitialized ${isa_flags_${isa}})
  target_link_libraries(sbhal_cpu_${isa} PRIVATE OpenMP::OpenMP_CXX)
  target_sources(sbhal_cpu PRIVATE $<TARGET_OBJECTS:sbhal_cpu_${isa}>)
  list(APPEND sbhal_cpu_targets sbhal_cpu_${isa})
  math(EXPR level "${level} + 1")
endforeach()

if(SBHAL_SANITIZE)  # at -O1: instrumented kernels take minutes to compile otherwise
  foreach(target sbhal_cpu ${sbhal_cpu_targets})
    target_compile_options(${target} PRIVATE -fsanitize=${SBHAL_SANITIZE} -fno-sanitize-recover=undefined -g1 -O1)
  endforeach()
  target_link_options(sbhal_cpu PRIVATE -fsanitize=${SBHAL_SANITIZE})
endif()

install(TARGETS sbhal_cpu LIBRARY DESTINATION "${SBHAL_INSTALL_DIR}/cpu")
