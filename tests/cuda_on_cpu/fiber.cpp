#include "tests/cuda_on_cpu/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if !defined(__x86_64__)
#define VIMTRT_UCONTEXT
#endif
#ifdef VIMTRT_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace vimtrt {
namespace cuda_on_cpu {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 * 1024;  // its frames are wide

Fiber* left = nullptr;  // where the last switch came from; null when it is gone for good

void announce_switch(Fiber* from, const Fiber& to) {
  left = from;
  __sanitizer_start_switch_fiber(from != nullptr ? &from->fake_stack : nullptr, to.stack.bottom, to.stack.bytes);
}

// A stack that was left for good still carries the marks of its frames.
void forget_frames(const Stack& stack) { ASAN_UNPOISON_MEMORY_REGION(stack.bottom, stack.bytes); }

void announce_arrival(Fiber& self) {
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(self.fake_stack, &bottom, &bytes);
  if (left != nullptr && left->stack.bytes == 0)
    left->stack = {static_cast<unsigned char*>(const_cast<void*>(bottom)), bytes};
}
#else
constexpr size_t kStackBytes = 64 * 1024;

void announce_switch(Fiber*, const Fiber&) {}
void forget_frames(const Stack&) {}
void announce_arrival(Fiber&) {}
#endif

constexpr unsigned kColours = 16;
constexpr size_t kColourBytes = 256;

#ifdef VIMTRT_UCONTEXT

// Never freed: there are as many as threads in a block, and they are used again.
ucontext_t* context_of(Fiber& fiber) {
  if (fiber.resume_point == nullptr) fiber.resume_point = new ucontext_t();
  return static_cast<ucontext_t*>(fiber.resume_point);
}

void change_stack(Fiber& from, Fiber& to) { swapcontext(context_of(from), context_of(to)); }
[[noreturn]] void take_stack(Fiber& to) {
  setcontext(context_of(to));
  std::abort();
}

#else

extern "C" void vimtrt_change_stack(void** from, void* to);

// Saves what a function must keep, stores the stack pointer, and undoes the same on the other stack.
asm(R"(
.text
.hidden vimtrt_change_stack
.globl vimtrt_change_stack
.type vimtrt_change_stack, @function
vimtrt_change_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size vimtrt_change_stack, . - vimtrt_change_stack
)");

constexpr int kSavedRegisters = 6;

void change_stack(Fiber& from, Fiber& to) { vimtrt_change_stack(&from.resume_point, to.resume_point); }
[[noreturn]] void take_stack(Fiber& to) {
  void* forgotten = nullptr;
  vimtrt_change_stack(&forgotten, to.resume_point);
  std::abort();
}

#endif

}  // namespace

Stack new_stack() {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) throw std::bad_alloc();
  return {static_cast<unsigned char*>(memory) + guard, kStackBytes};
}

void prepare_fiber(Fiber& fiber, const Stack& stack, Entry entry, unsigned colour) {
  fiber.stack = stack;
  fiber.fake_stack = nullptr;
  forget_frames(stack);
  const size_t bytes = stack.bytes - colour % kColours * kColourBytes;
#ifdef VIMTRT_UCONTEXT
  ucontext_t* context = context_of(fiber);
  getcontext(context);
  context->uc_stack.ss_sp = stack.bottom;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
#else
  // As after a call of entry: 16-byte alignment is 8 bytes away, and the return address is none.
  uintptr_t* frame = reinterpret_cast<uintptr_t*>(stack.bottom + bytes);
  *--frame = 0;
  *--frame = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--frame = 0;
  fiber.resume_point = frame;
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
  announce_switch(&from, to);
  change_stack(from, to);
  announce_arrival(from);
}

void arrived(Fiber& self) { announce_arrival(self); }

void leave_fiber(Fiber& to) {
  announce_switch(nullptr, to);
  take_stack(to);
}

}  // namespace cuda_on_cpu
}  // namespace vimtrt
