# For the tests: the plugin library on the CPU double of CUDA (tests/cuda_on_cpu). vimtrt_plugins_on_cpu is a Python
# module that plays TensorRT's part, vimtrt_fuzz_plugins a program that gives plugins what no TensorRT would, under
# AddressSanitizer and UndefinedBehaviorSanitizer.
include(cmake/TensorRTHeaders.cmake)

find_package(CUDAToolkit QUIET)
vimtrt_find_tensorrt_headers(VIMTRT_TENSORRT_HEADERS problem)
if(NOT CUDAToolkit_FOUND OR NOT VIMTRT_TENSORRT_HEADERS)
  message(STATUS
    "vimtrt_plugins_on_cpu is left out: it needs the headers of the CUDA toolkit and of TensorRT. ${problem}")
  return()
endif()


add_library(vimtrt_plugins_for_double OBJECT ${VIMTRT_PLUGIN_SOURCES})
target_compile_definitions(vimtrt_plugins_for_double PUBLIC VIMTRT_CUDA_ON_CPU VIMTRT_VERSION="${VIMTRT_VERSION}")
target_compile_options(vimtrt_plugins_for_double PRIVATE -O1 -g --coverage)
target_link_libraries(vimtrt_plugins_for_double PUBLIC vimtrt_flags)
target_include_directories(vimtrt_plugins_for_double SYSTEM PUBLIC ${VIMTRT_TENSORRT_HEADERS}
  ${CUDAToolkit_INCLUDE_DIRS})

vimtrt_test_module(vimtrt_plugins_on_cpu tests/native/plugins_module.cpp)
target_sources(vimtrt_plugins_on_cpu PRIVATE plugins/executor/copy.cpp)
target_link_libraries(vimtrt_plugins_on_cpu PRIVATE vimtrt_plugins_for_double vimtrt_kernels_on_cpu)
target_link_options(vimtrt_plugins_on_cpu PRIVATE --coverage)

# The kernels, the double and the plugins once more, under the sanitizers.
add_executable(vimtrt_fuzz_plugins
  tests/cuda_on_cpu/fuzz_plugins.cpp
  tests/cuda_on_cpu/cuda_on_cpu.cpp
  tests/cuda_on_cpu/fiber.cpp
  tests/cuda_on_cpu/memory.cpp
  tests/cuda_on_cpu/watch.cpp
  ${VIMTRT_PLUGIN_SOURCES}
)
set(VIMTRT_SANITIZERS -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
set(VIMTRT_FUZZ_KERNELS "")
foreach(operator IN LISTS VIMTRT_OPERATORS)
  # A source file has one set of options, and kernel.cu has the double's already: so a file of its own includes it.
  file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/fuzz/${operator}.cpp CONTENT "#include \"plugins/${operator}/kernel.cu\"\n")
  list(APPEND VIMTRT_FUZZ_KERNELS ${CMAKE_BINARY_DIR}/fuzz/${operator}.cpp)
endforeach()
target_sources(vimtrt_fuzz_plugins PRIVATE ${VIMTRT_FUZZ_KERNELS})
target_compile_definitions(vimtrt_fuzz_plugins PRIVATE VIMTRT_CUDA_ON_CPU VIMTRT_VERSION="${VIMTRT_VERSION}")
target_compile_options(vimtrt_fuzz_plugins PRIVATE -O1 -g -fno-strict-aliasing -Wno-unknown-pragmas
  ${VIMTRT_SANITIZERS})
target_link_options(vimtrt_fuzz_plugins PRIVATE ${VIMTRT_SANITIZERS})
target_include_directories(vimtrt_fuzz_plugins SYSTEM PRIVATE ${VIMTRT_TENSORRT_HEADERS} ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(vimtrt_fuzz_plugins PRIVATE vimtrt_flags ${CMAKE_DL_LIBS})
