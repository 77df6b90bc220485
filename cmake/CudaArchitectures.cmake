# vimtrt_cuda_architectures(NVCC RESULT MISSING): RESULT in the form of CMAKE_CUDA_ARCHITECTURES, those of
# VIMTRT_CUDA_ARCHITECTURES that this nvcc knows and the PTX; MISSING are the others.
#
# sm_80 A100, 86 RTX 30, 87 Orin, 89 RTX 40 and L4, 90 H100, 100 B200, 110 Thor (101 before CUDA 13), 120 RTX 50. PTX
# of compute_80 serves every GPU that comes later.
set(VIMTRT_CUDA_ARCHITECTURES "80;86;87;89;90;100;110;120" CACHE STRING "GPU architectures of the plugin library")

function(vimtrt_cuda_architectures NVCC RESULT MISSING)
  execute_process(COMMAND ${NVCC} --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+" known "${known}")
  set(missing "")
  foreach(architecture IN LISTS VIMTRT_CUDA_ARCHITECTURES)
    if(architecture STREQUAL "110" AND NOT "110" IN_LIST known)
      set(architecture "101")
    endif()
    if(architecture IN_LIST known)
      list(APPEND found "${architecture}-real")
    else()
      list(APPEND missing "sm_${architecture}")
    endif()
  endforeach()
  list(APPEND found "80-virtual")
  set(${RESULT} "${found}" PARENT_SCOPE)
  set(${MISSING} "${missing}" PARENT_SCOPE)
endfunction()
