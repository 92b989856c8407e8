# Compilers of GPU kernels, each as the arguments of sbhal_add_backend() that say how to call it. Any other is
# said in the same words: set(toolchain COMPILER <command> FLAGS -x <language> -fPIC LINK <its runtime>).

# NVIDIA: nvcc of the CUDA toolkit, 12 or later. SBHAL_CUDA_ARCHS: compute capabilities; the last also as PTX.
function(sbhal_find_nvcc out)
  set(SBHAL_CUDA_ARCHS "80;90" CACHE STRING "Compute capabilities to compile for; the last also as PTX for later ones")
  set(SBHAL_CUDA_FLAGS "" CACHE STRING "More flags for nvcc")
  find_program(SBHAL_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin DOC "NVIDIA's compiler")
  if(NOT SBHAL_NVCC)
    message(FATAL_ERROR "nvcc of the CUDA toolkit was not found: set CUDA_HOME or -DSBHAL_NVCC=<path>.")
  endif()

  set(flags -x cu -Xcompiler=-fPIC,-fvisibility=hidden ${SBHAL_CUDA_FLAGS})
  foreach(arch IN LISTS SBHAL_CUDA_ARCHS)
    list(APPEND flags -gencode=arch=compute_${arch},code=sm_${arch})
  endforeach()
  list(GET SBHAL_CUDA_ARCHS -1 newest)
  list(APPEND flags -gencode=arch=compute_${newest},code=compute_${newest})

  execute_process(COMMAND ${SBHAL_NVCC} --dryrun -x cu /dev/null -o /dev/null ERROR_VARIABLE plan OUTPUT_QUIET)
  string(REGEX MATCH "TOP=([^\n]*)" _ "${plan}")
  find_library(SBHAL_CUDART cudart_static HINTS "${CMAKE_MATCH_1}" PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib
                                                                                targets/sbsa-linux/lib)
  if(NOT SBHAL_CUDART)
    message(FATAL_ERROR "libcudart_static was not found beside nvcc (${CMAKE_MATCH_1}): set -DSBHAL_CUDART=<path>.")
  endif()
  find_package(Threads REQUIRED)
  set(${out} COMPILER ${SBHAL_LAUNCH_GPU_COMPILER} ${SBHAL_NVCC} FLAGS ${flags}
      LINK ${SBHAL_CUDART} Threads::Threads rt ${CMAKE_DL_LIBS} PARENT_SCOPE)
endfunction()

# AMD: hipcc of ROCm, or a clang that knows HIP. SBHAL_ROCM_ARCHS: the targets of the one fat module.
function(sbhal_find_hipcc out)
  set(SBHAL_ROCM_ARCHS "gfx906;gfx90a;gfx1030" CACHE STRING "Targets to compile for")
  set(SBHAL_ROCM_FLAGS "" CACHE STRING "More flags for the compiler")
  find_program(SBHAL_HIPCC hipcc HINTS ENV ROCM_PATH /opt/rocm PATH_SUFFIXES bin DOC "AMD's compiler")
  if(NOT SBHAL_HIPCC)
    message(FATAL_ERROR "hipcc was not found: install ROCm and set ROCM_PATH, or -DSBHAL_HIPCC=<path>.")
  endif()
  find_library(SBHAL_AMDHIP amdhip64 HINTS ENV ROCM_PATH /opt/rocm PATH_SUFFIXES lib)
  if(NOT SBHAL_AMDHIP)
    message(FATAL_ERROR "libamdhip64 was not found: set ROCM_PATH, or -DSBHAL_AMDHIP=<path>.")
  endif()
  set(flags -x hip -fPIC -fvisibility=hidden ${SBHAL_ROCM_FLAGS})
  foreach(arch IN LISTS SBHAL_ROCM_ARCHS)
    list(APPEND flags --offload-arch=${arch})
  endforeach()
  # hipcc takes NVIDIA's compiler, where there is one, unless told otherwise
  set(${out} COMPILER "${CMAKE_COMMAND}" -E env HIP_PLATFORM=amd ${SBHAL_LAUNCH_GPU_COMPILER} ${SBHAL_HIPCC}
      FLAGS ${flags} LINK ${SBHAL_AMDHIP} TARGETS ${SBHAL_ROCM_ARCHS} PARENT_SCOPE)
endfunction()
