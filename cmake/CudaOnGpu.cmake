# For the tests: the same kernels and plugins on a GPU, by nvcc, for this machine's own GPU or the architectures of
# CMAKE_CUDA_ARCHITECTURES: the engine _cuda, the Python modules vimtrt_cuda_on_gpu and, where TensorRT's headers are found,
# vimtrt_plugins_on_gpu (tests/native/README.md).
include(cmake/TestModules.cmake)
include(cmake/TensorRTHeaders.cmake)
include(cmake/CudaEngine.cmake)
include(cmake/CudaOptions.cmake)

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES native)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

set(VIMTRT_KERNELS ${VIMTRT_KERNEL_SOURCES} ${VIMTRT_COPY_SOURCES} tests/native/probes.cu)
add_library(vimtrt_kernels_on_gpu STATIC tests/native/device_cuda.cpp ${VIMTRT_KERNELS})
target_include_directories(vimtrt_kernels_on_gpu PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
target_compile_options(vimtrt_kernels_on_gpu PRIVATE ${VIMTRT_CONTRACT_OPTIONS} "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>")
target_link_libraries(vimtrt_kernels_on_gpu PUBLIC CUDA::cudart_static)
vimtrt_test_module(vimtrt_cuda_on_gpu tests/native/operators_module.cpp)
target_sources(vimtrt_cuda_on_gpu PRIVATE ${VIMTRT_OPERATOR_SOURCES} ${VIMTRT_CUDA_OPERATOR_SOURCES}
  ${VIMTRT_CUDA_EXECUTOR_SOURCES})
target_include_directories(vimtrt_cuda_on_gpu SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(vimtrt_cuda_on_gpu PRIVATE vimtrt_kernels_on_gpu)
vimtrt_cuda_engine(vimtrt_kernels_on_gpu)

vimtrt_find_tensorrt_headers(VIMTRT_TENSORRT_HEADERS problem)
if(NOT VIMTRT_TENSORRT_HEADERS)
  message(STATUS "vimtrt_plugins_on_gpu is left out: ${problem}")
  return()
endif()
vimtrt_test_module(vimtrt_plugins_on_gpu tests/native/plugins_module.cpp)
target_sources(vimtrt_plugins_on_gpu PRIVATE ${VIMTRT_PLUGIN_SOURCES} plugins/executor/copy.cpp)
target_compile_definitions(vimtrt_plugins_on_gpu PRIVATE VIMTRT_VERSION="${VIMTRT_VERSION}")
target_compile_options(vimtrt_plugins_on_gpu PRIVATE ${VIMTRT_CONTRACT_OPTIONS})
target_include_directories(vimtrt_plugins_on_gpu SYSTEM PRIVATE ${VIMTRT_TENSORRT_HEADERS} ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(vimtrt_plugins_on_gpu PRIVATE vimtrt_kernels_on_gpu)
