// What the parts of the double know of the launch that runs.
#pragma once

#include <string>

#include "tests/cuda_on_cpu/fiber.h"
#include "tests/cuda_on_cpu/memory.h"

namespace vimtrt {
namespace cuda_on_cpu {

// The numbers of cudaError_t.
constexpr int kInvalidValue = 1;
constexpr int kInvalidConfiguration = 9;
constexpr int kIllegalAddress = 700;
constexpr int kMisalignedAddress = 716;
constexpr int kLaunchFailure = 719;

bool is_in_kernel();
const Stack& stack_of_thread();
const Guarded* shared_memory();

// Ends the launch from the thread that runs.
[[noreturn]] void fail(int status, const std::string& text);

// " (addr2line ...)": how to find the line of an instruction of a kernel.
std::string place_of(const void* instruction);

}  // namespace cuda_on_cpu
}  // namespace vimtrt
