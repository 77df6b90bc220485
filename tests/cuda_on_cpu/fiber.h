// Stacks of their own and switches between them.
#pragma once

#include <cstddef>

namespace vimtrt {
namespace cuda_on_cpu {

// Memory for a stack; below it lies a guard page.
struct Stack {
  unsigned char* bottom = nullptr;
  size_t bytes = 0;
};

Stack new_stack();

// Where a switch away from a stack left it.
struct Fiber {
  void* resume_point = nullptr;
  Stack stack;
  void* fake_stack = nullptr;  // of AddressSanitizer
};

using Entry = void (*)();

// Sets `fiber` up to begin with `entry`, which never returns, on `stack`. `colour` shifts its first frame, so that the
// stacks do not compete for the same lines of the cache.
void prepare_fiber(Fiber& fiber, const Stack& stack, Entry entry, unsigned colour);

// Goes on with `to`; returns when someone switches back to `from`. An entry function begins with arrived(its fiber).
void switch_fiber(Fiber& from, Fiber& to);
void arrived(Fiber& self);

// Goes on with `to` for good: nothing of the present stack is needed any more.
[[noreturn]] void leave_fiber(Fiber& to);

}  // namespace cuda_on_cpu
}  // namespace vimtrt
