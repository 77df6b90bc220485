// Memory between guard pages: device memory, known by name, and the shared memory of a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "tests/cuda_on_cpu/control.h"

namespace vimtrt {
namespace cuda_on_cpu {

// What is known of one byte (watch.h).
struct Trace;

// `bytes` of memory, whole pages around them, and a guard page on either side. The bytes of the pages that were not
// asked for hold a mark.
class Guarded {
 public:
  Guarded(size_t bytes, size_t alignment, Placement placement, std::string name);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool is_protected() const { return is_protected_; }

  void fill(uint8_t pattern);
  void protect(bool is_protected);
  bool holds(const void* address, size_t bytes) const {  // all of these bytes were asked for
    const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(address) - data_);
    return offset <= bytes_ && bytes <= bytes_ - offset;
  }
  std::string describe(const void* address) const;  // "byte 20 of x (16 bytes)"
  std::string damage() const;                       // what was written beside the memory, or nothing
  Trace* traces();                                  // one for each byte, zeros at first

 private:
  unsigned char* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  size_t page_ = 0;
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0;
  std::string name_;
  bool is_protected_ = false;
  Trace* traces_ = nullptr;
};

// All guarded memory lies in one range of addresses, so that whose an address is takes no search.
struct Arena {
  unsigned char* begin = nullptr;
  Guarded** owners = nullptr;  // by page
};
extern Arena arena;
constexpr size_t kArenaBytes = size_t{4} << 30;
constexpr unsigned kArenaPageBits = 12;

// The memory on whose pages or guard pages the address lies, or null.
inline Guarded* owner_of(const void* address) {
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(address) - arena.begin);
  return offset < kArenaBytes && arena.begin != nullptr ? arena.owners[offset >> kArenaPageBits] : nullptr;
}

// What was written beside device memory, or nothing.
std::string device_damage();

}  // namespace cuda_on_cpu
}  // namespace vimtrt
