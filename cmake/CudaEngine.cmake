# vimtrt_cuda_engine(KERNELS..): the Python module _cuda of these objects or libraries, in C++ and CUDA's runtime alone.
# Its domain is its own: _native has a class of the same name.
function(vimtrt_cuda_engine)
  nanobind_add_module(_cuda NB_STATIC NB_DOMAIN vimtrt_cuda plugins/bindings/cuda_module.cpp
    ${VIMTRT_CUDA_EXECUTOR_SOURCES} ${VIMTRT_OPERATOR_SOURCES} ${VIMTRT_CUDA_OPERATOR_SOURCES})
  target_include_directories(_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_include_directories(_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(_cuda PRIVATE ${VIMTRT_CONTRACT_OPTIONS})
  list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
  target_compile_definitions(_cuda PRIVATE VIMTRT_ARCHITECTURES="${architectures}")
  target_link_libraries(_cuda PRIVATE ${ARGN} CUDA::cudart_static)
endfunction()
