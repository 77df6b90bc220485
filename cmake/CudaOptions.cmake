# The numeric contract (docs/numerics.md) for nvcc and its host compiler: a fused multiply-add happens where it is written and nowhere else, and
# nothing is estimated.
set(VIMTRT_CONTRACT_OPTIONS
  "$<$<COMPILE_LANGUAGE:CUDA>:-O3;-fmad=false;-ftz=false;-prec-div=true;-prec-sqrt=true>"
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-ffp-contract=off>")
