# vimtrt_find_tensorrt_headers(RESULT PROBLEM): the folder with NvInferRuntime.h, or an empty RESULT and what is wrong
# in PROBLEM.
#
# Looked for in TENSORRT_INCLUDE_DIR, in TENSORRT_ROOT, where Debian's and JetPack's packages put it, in the wheel
# VIMTRT_HEADERS_WHEEL, and at last on PyPI: the wheel of kernel-lens carries NVIDIA's own headers of TensorRT 10.14.1
# (Apache-2.0). The variables may stand in the environment. The virtual tables that a plugin meets are the same up to
# TensorRT 11 (plugins/bindings/plugin.h).
set(VIMTRT_HEADERS_PACKAGE "kernel-lens==2.0.1")
set(VIMTRT_HEADERS_SHA256 "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0")

function(vimtrt_find_tensorrt_headers RESULT PROBLEM)
  set(${PROBLEM} "" PARENT_SCOPE)
  foreach(given TENSORRT_INCLUDE_DIR TENSORRT_ROOT VIMTRT_HEADERS_WHEEL)
    if(NOT DEFINED ${given} AND DEFINED ENV{${given}})
      set(${given} "$ENV{${given}}")
    endif()
  endforeach()
  if(TENSORRT_INCLUDE_DIR OR TENSORRT_ROOT)
    unset(found CACHE)
    find_path(found NvInferRuntime.h PATHS ${TENSORRT_INCLUDE_DIR} ${TENSORRT_ROOT}/include NO_DEFAULT_PATH NO_CACHE)
    if(NOT found)
      set(${PROBLEM} "there is no NvInferRuntime.h in ${TENSORRT_INCLUDE_DIR} ${TENSORRT_ROOT}" PARENT_SCOPE)
      set(found "")
    endif()
    set(${RESULT} "${found}" PARENT_SCOPE)
    return()
  endif()
  find_path(found NvInferRuntime.h NO_CACHE)
  if(NOT found)
    _vimtrt_headers_of_wheel("${VIMTRT_HEADERS_WHEEL}" found problem)
    set(${PROBLEM} "${problem}" PARENT_SCOPE)
  endif()
  set(${RESULT} "${found}" PARENT_SCOPE)
endfunction()

# WHEEL: a file that is there, or nothing: then it is downloaded.
function(_vimtrt_headers_of_wheel WHEEL RESULT PROBLEM)
  set(folder "${CMAKE_BINARY_DIR}/tensorrt_headers")
  set(include "${folder}/kernel_lens/include/tensorrt")
  set(${RESULT} "${include}" PARENT_SCOPE)
  set(${PROBLEM} "" PARENT_SCOPE)
  if(EXISTS "${include}/NvInferRuntime.h")
    return()
  endif()
  set(${RESULT} "" PARENT_SCOPE)
  set(wheel "${WHEEL}")
  if(wheel)
    set(hash "")
    if(EXISTS "${wheel}")
      file(SHA256 "${wheel}" hash)
    endif()
    if(NOT hash STREQUAL VIMTRT_HEADERS_SHA256)
      string(CONCAT problem "${wheel} is not the wheel of ${VIMTRT_HEADERS_PACKAGE}; "
        "get it: pip download --no-deps ${VIMTRT_HEADERS_PACKAGE}")
      set(${PROBLEM} "${problem}" PARENT_SCOPE)
      return()
    endif()
  else()
    _vimtrt_download_headers("${folder}" wheel problem)
    if(NOT wheel)
      set(${PROBLEM} "${problem}" PARENT_SCOPE)
      return()
    endif()
  endif()
  # Unpacked beside and renamed, so that a broken unpacking is not taken for a whole one.
  file(REMOVE_RECURSE "${folder}/unpacked")
  file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${folder}/unpacked" PATTERNS "kernel_lens/include/tensorrt/*")
  file(REMOVE_RECURSE "${folder}/kernel_lens")
  file(RENAME "${folder}/unpacked/kernel_lens" "${folder}/kernel_lens")
  if(EXISTS "${include}/NvInferRuntime.h")
    set(${RESULT} "${include}" PARENT_SCOPE)
  else()
    set(${PROBLEM}
      "the wheel of ${VIMTRT_HEADERS_PACKAGE} holds no NvInferRuntime.h; give -DTENSORRT_INCLUDE_DIR=FOLDER"
        PARENT_SCOPE)
  endif()
endfunction()

# The wheel in FOLDER, from PyPI.
function(_vimtrt_download_headers FOLDER RESULT PROBLEM)
  set(folder "${FOLDER}")
  set(${RESULT} "" PARENT_SCOPE)
  find_package(Python 3.10 COMPONENTS Interpreter)
  if(NOT Python_EXECUTABLE)
    string(CONCAT problem "TensorRT's headers were not found, and there is no Python to download them with; "
      "give -DTENSORRT_INCLUDE_DIR=FOLDER")
    set(${PROBLEM} "${problem}" PARENT_SCOPE)
    return()
  endif()
  message(STATUS "Downloading TensorRT's headers (${VIMTRT_HEADERS_PACKAGE})")
  file(WRITE "${folder}/requirements.txt" "${VIMTRT_HEADERS_PACKAGE} --hash=sha256:${VIMTRT_HEADERS_SHA256}\n")
  execute_process(
    COMMAND ${Python_EXECUTABLE} -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes
      --only-binary=:all:
      --dest "${folder}" -r "${folder}/requirements.txt"
    RESULT_VARIABLE status OUTPUT_QUIET ERROR_VARIABLE log)
  file(GLOB wheel "${folder}/kernel_lens-*.whl")
  if(NOT status EQUAL 0 OR NOT wheel)
    string(STRIP "${log}" log)
    string(CONCAT problem "TensorRT's headers could not be downloaded; "
      "give -DTENSORRT_INCLUDE_DIR=FOLDER with NvInferRuntime.h (pip: ${log})")
    set(${PROBLEM} "${problem}" PARENT_SCOPE)
    return()
  endif()
  set(${RESULT} "${wheel}" PARENT_SCOPE)
endfunction()
