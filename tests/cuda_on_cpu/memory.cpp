#include "tests/cuda_on_cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "tests/cuda_on_cpu/watch.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace vimtrt {
namespace cuda_on_cpu {

Arena arena;

namespace {

constexpr uint8_t kMark = 0xc3;

std::vector<std::unique_ptr<Guarded>>& device_memory() {
  static std::vector<std::unique_ptr<Guarded>> all;
  return all;
}

Settings chosen;

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// The arena is filled from its start, and anew when nothing of it is in use.
size_t arena_used = 0;
int arena_users = 0;

void open_arena() {
  void* memory = mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void* owners = std::calloc(kArenaBytes >> kArenaPageBits, sizeof(Guarded*));
  if (memory == MAP_FAILED || owners == nullptr) throw std::bad_alloc();
  arena = {static_cast<unsigned char*>(memory), static_cast<Guarded**>(owners)};
}

void set_owner(unsigned char* begin, size_t bytes, Guarded* owner) {
  Guarded** first = arena.owners + (static_cast<size_t>(begin - arena.begin) >> kArenaPageBits);
  std::fill(first, first + (bytes >> kArenaPageBits), owner);
}

// Inaccessible addresses.
unsigned char* take_addresses(size_t bytes, Guarded* owner) {
  if (arena.begin == nullptr) open_arena();
  if (arena_users == 0) arena_used = 0;
  if (bytes > kArenaBytes - arena_used) throw std::bad_alloc();
  unsigned char* begin = arena.begin + arena_used;
  arena_used += bytes;
  ++arena_users;
  set_owner(begin, bytes, owner);
  return begin;
}

void return_addresses(unsigned char* begin, size_t bytes) {
  set_owner(begin, bytes, nullptr);
  mmap(begin, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  --arena_users;
}

// The bytes beside the memory: AddressSanitizer watches them where it is there, else they hold the mark.
#ifdef __SANITIZE_ADDRESS__
void mark(unsigned char* begin, unsigned char* end) {
  ASAN_POISON_MEMORY_REGION(begin, static_cast<size_t>(end - begin));
}
void unmark(unsigned char* begin, unsigned char* end) {
  ASAN_UNPOISON_MEMORY_REGION(begin, static_cast<size_t>(end - begin));
}
const unsigned char* find_change(const unsigned char*, const unsigned char*) { return nullptr; }
#else
void mark(unsigned char* begin, unsigned char* end) { std::memset(begin, kMark, static_cast<size_t>(end - begin)); }
void unmark(unsigned char*, unsigned char*) {}
const unsigned char* find_change(const unsigned char* begin, const unsigned char* end) {
  const unsigned char* found = std::find_if(begin, end, [](unsigned char byte) { return byte != kMark; });
  return found != end ? found : nullptr;
}
#endif

}  // namespace

Guarded::Guarded(size_t bytes, size_t alignment, Placement placement, std::string name)
    : bytes_(bytes), name_(std::move(name)) {
  page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > page_)
    throw std::invalid_argument("alignment is not a power of two");
  const size_t inner = std::max(round_up(bytes, page_), page_);
  mapping_bytes_ = inner + 2 * page_;
  mapping_ = take_addresses(mapping_bytes_, this);
  unsigned char* begin = mapping_ + page_;
  unsigned char* end = begin + inner;
  if (mprotect(begin, inner, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  data_ = placement == Placement::kLeft ? begin : end - round_up(bytes, alignment);
  mark(begin, data_);
  mark(data_ + bytes, end);
}

Guarded::~Guarded() {
  unmark(mapping_ + page_, mapping_ + mapping_bytes_ - page_);
  return_addresses(mapping_, mapping_bytes_);
  std::free(traces_);
}

void Guarded::fill(uint8_t pattern) { std::memset(data_, pattern, bytes_); }

void Guarded::protect(bool is_protected) {
  mprotect(mapping_ + page_, mapping_bytes_ - 2 * page_, is_protected ? PROT_READ : PROT_READ | PROT_WRITE);
  is_protected_ = is_protected;
}

std::string Guarded::describe(const void* address) const {
  const auto* p = static_cast<const unsigned char*>(address);
  const std::string text =
      "byte " + std::to_string(p - data_) + " of " + name_ + " (" + std::to_string(bytes_) + " bytes)";
  return is_protected_ && holds(p, 1) ? text + ", an input" : text;
}

std::string Guarded::damage() const {
  const unsigned char* changed = find_change(mapping_ + page_, data_);
  if (changed == nullptr) changed = find_change(data_ + bytes_, mapping_ + mapping_bytes_ - page_);
  return changed != nullptr ? "wrote " + describe(changed) : std::string();
}

Trace* Guarded::traces() {
  if (traces_ == nullptr) traces_ = static_cast<Trace*>(std::calloc(std::max<size_t>(bytes_, 1), sizeof(Trace)));
  if (traces_ == nullptr) throw std::bad_alloc();
  return traces_;
}

std::string device_damage() {
  for (const auto& memory : device_memory()) {
    if (std::string text = memory->damage(); !text.empty()) return text;
  }
  return {};
}

void configure(const Settings& settings) { chosen = settings; }
const Settings& settings() { return chosen; }

void* device_allocate(size_t bytes, size_t alignment, const char* name) {
  device_memory().push_back(std::make_unique<Guarded>(bytes, alignment, chosen.placement, name));
  device_memory().back()->fill(chosen.poison);
  return device_memory().back()->data();
}

void device_free(void* memory) {
  auto& all = device_memory();
  const auto found = std::find_if(all.begin(), all.end(), [&](const auto& each) { return each->data() == memory; });
  if (found == all.end()) throw std::invalid_argument("not the start of device memory");
  all.erase(found);
}

void device_protect(void* memory, bool is_protected) {
  Guarded* owner = owner_of(memory);
  if (owner != nullptr && owner->data() == memory) return owner->protect(is_protected);
  throw std::invalid_argument("not the start of device memory");
}

}  // namespace cuda_on_cpu
}  // namespace vimtrt
