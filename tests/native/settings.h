// What the test modules share: the settings of a run as Python gives them, the same for both worlds (device.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "tests/cuda_on_cpu/control.h"

namespace vimtrt {
namespace test {

// What a kernel that failed, wrote where it may not, or was not the same twice raises.
struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Settings {
  cuda_on_cpu::Settings of_double;  // a GPU takes its poison alone
  size_t alignment = 16;            // of device memory, at least that of its elements
  size_t shift =
      0;  // elements between there and the first one used: with 1 a pointer is aligned to no more than its elements
  std::string shifted;  // the one array that is shifted, instead of all
  bool guards =
      true;  // on a GPU; false: memory is exactly what was asked for and holds nothing, as compute-sanitizer wants it
};

}  // namespace test
}  // namespace vimtrt
