# For the tests: the CUDA kernels on a CPU (tests/cuda_on_cpu), the Python module vimtrt_cuda_on_cpu.
include(cmake/TestModules.cmake)

set(VIMTRT_KERNELS ${VIMTRT_KERNEL_SOURCES} ${VIMTRT_COPY_SOURCES} tests/cuda_on_cpu/planted.cu tests/native/probes.cu)

# Locals that are not initialized hold a pattern. Deep stacks meet their guard page. Kernels look at the same bytes as
# different types.
# -fsanitize=thread calls tests/cuda_on_cpu/watch.cpp at every access; its own library is not linked.
set(VIMTRT_KERNEL_OPTIONS -x c++ -fno-strict-aliasing -ftrivial-auto-var-init=pattern -fstack-clash-protection
  -Wno-unknown-pragmas --coverage)
if(NOT VIMTRT_CUDA_ON_CPU_ASAN)
  list(APPEND VIMTRT_KERNEL_OPTIONS -fsanitize=thread)
endif()
set_source_files_properties(${VIMTRT_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "${VIMTRT_KERNEL_OPTIONS}")
add_library(vimtrt_kernels_on_cpu STATIC
  tests/cuda_on_cpu/cuda_on_cpu.cpp
  tests/cuda_on_cpu/fiber.cpp
  tests/cuda_on_cpu/memory.cpp
  tests/cuda_on_cpu/watch.cpp
  tests/native/device_double.cpp
  ${VIMTRT_KERNELS}
)
target_compile_definitions(vimtrt_kernels_on_cpu PUBLIC VIMTRT_CUDA_ON_CPU)
target_compile_options(vimtrt_kernels_on_cpu PRIVATE -O2 -g)
target_link_options(vimtrt_kernels_on_cpu PUBLIC --coverage)  # of the kernels: tools/kernel_coverage.py
target_link_libraries(vimtrt_kernels_on_cpu PUBLIC vimtrt_flags ${CMAKE_DL_LIBS})
set_source_files_properties(plugins/executor/cuda_program.cpp PROPERTIES COMPILE_OPTIONS --coverage)
vimtrt_test_module(vimtrt_cuda_on_cpu tests/native/operators_module.cpp)
target_sources(vimtrt_cuda_on_cpu PRIVATE ${VIMTRT_OPERATOR_SOURCES} ${VIMTRT_CUDA_OPERATOR_SOURCES}
  ${VIMTRT_CUDA_EXECUTOR_SOURCES})
target_link_libraries(vimtrt_cuda_on_cpu PRIVATE vimtrt_kernels_on_cpu)
if(VIMTRT_CUDA_ON_CPU_ASAN)
  target_compile_options(vimtrt_kernels_on_cpu PRIVATE -fsanitize=address -fno-omit-frame-pointer)
  target_link_options(vimtrt_cuda_on_cpu PRIVATE -fsanitize=address)
endif()
