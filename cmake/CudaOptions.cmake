# How this project uses CUDA as a language; include it before enable_language(CUDA).
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

# The numeric contract (docs/numerics.md) for nvcc and its host compiler: a fused multiply-add happens where it is
# written and nowhere else, and nothing is estimated.
set(VIMTRT_CONTRACT_OPTIONS
  "$<$<COMPILE_LANGUAGE:CUDA>:-O3;-fmad=false;-ftz=false;-prec-div=true;-prec-sqrt=true>"
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-ffp-contract=off>")
