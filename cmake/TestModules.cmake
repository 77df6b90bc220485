# What the tests' Python modules share (tests/native).
find_package(Python 3.10 COMPONENTS Interpreter Development.Module REQUIRED)
execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir OUTPUT_VARIABLE VIMTRT_NANOBIND
  OUTPUT_STRIP_TRAILING_WHITESPACE)
find_package(nanobind CONFIG REQUIRED HINTS ${VIMTRT_NANOBIND})

# vimtrt_test_module(NAME SOURCE): a Python module. Its domain is its own, since the modules of both worlds may be
# loaded by one process.
function(vimtrt_test_module NAME SOURCE)
  nanobind_add_module(${NAME} NB_STATIC NB_DOMAIN ${NAME} NOSTRIP ${SOURCE})
  target_compile_definitions(${NAME} PRIVATE VIMTRT_MODULE=${NAME})
endfunction()
