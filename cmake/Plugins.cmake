# The TensorRT plugin library libvimtrt_plugins.so, where nvcc and TensorRT's headers are at hand.
include(cmake/TensorRTHeaders.cmake)
include(cmake/CudaArchitectures.cmake)
include(cmake/CudaOptions.cmake)

set(VIMTRT_KERNEL_SOURCES "")
foreach(operator IN LISTS VIMTRT_OPERATORS)
  list(APPEND VIMTRT_KERNEL_SOURCES plugins/${operator}/kernel.cu)
endforeach()

# Says why the plugin library is left out; with VIMTRT_TENSORRT=ON that is an error.
macro(vimtrt_leave_plugins_out REASON)
  if(VIMTRT_TENSORRT STREQUAL "AUTO")
    message(STATUS "libvimtrt_plugins.so is left out: ${REASON}")
    return()
  endif()
  message(FATAL_ERROR "libvimtrt_plugins.so cannot be built: ${REASON}")
endmacro()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  string(CONCAT problem "there is no nvcc; install the CUDA toolkit, or name it: "
    "-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc")
  vimtrt_leave_plugins_out("${problem}")
endif()
vimtrt_find_tensorrt_headers(VIMTRT_TENSORRT_HEADERS problem)
if(NOT VIMTRT_TENSORRT_HEADERS)
  vimtrt_leave_plugins_out("${problem}")
endif()

vimtrt_cuda_architectures(${CMAKE_CUDA_COMPILER} CMAKE_CUDA_ARCHITECTURES missing)
if(missing)
  message(STATUS "libvimtrt_plugins.so goes without ${missing}: this nvcc does not know them")
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

add_library(vimtrt_plugins SHARED ${VIMTRT_PLUGIN_SOURCES} ${VIMTRT_KERNEL_SOURCES})
target_include_directories(vimtrt_plugins PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_include_directories(vimtrt_plugins SYSTEM PRIVATE ${VIMTRT_TENSORRT_HEADERS} ${CUDAToolkit_INCLUDE_DIRS})
target_compile_definitions(vimtrt_plugins PRIVATE VIMTRT_VERSION="${VIMTRT_VERSION}")
target_compile_options(vimtrt_plugins PRIVATE ${VIMTRT_CONTRACT_OPTIONS})
# It travels inside of plans to other machines: nothing but libc is taken from them, and nothing but what TensorRT
# looks up is shown.
target_link_options(vimtrt_plugins PRIVATE -static-libstdc++ -static-libgcc
  -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/plugins/bindings/library.map)
set_target_properties(vimtrt_plugins PROPERTIES LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/plugins/bindings/library.map)
install(TARGETS vimtrt_plugins LIBRARY DESTINATION pyvimtrt/lib)
