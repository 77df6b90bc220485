// The world of the CPU double: memory is the host's, a stream runs its work at once, a graph is a list of functions.
#include <chrono>
#include <cstring>

#include "tests/cuda_on_cpu/control.h"
#include "tests/native/device.h"

namespace vimtrt {
namespace test {

const char* const kWorld = "double";

std::vector<std::pair<std::string, std::string>> describe_device() { return {{"name", "the CPU double of CUDA"}}; }

void begin(const Settings& settings) { cuda_on_cpu::configure(settings.of_double); }

void finish(int status) {
  if (status != 0) throw KernelError("cudaError " + std::to_string(status) + ": " + cuda_on_cpu::last_error());
}

std::string last_error() { return cuda_on_cpu::last_error(); }

struct Memory::World {
  void* allocation;
};

Memory::Memory(const Settings& settings, size_t bytes, size_t element_bytes, std::string name)
    : bytes_(bytes), name_(std::move(name)) {
  const size_t shift = settings.shifted.empty() || settings.shifted == name_ ? settings.shift * element_bytes : 0;
  const size_t alignment = settings.alignment > element_bytes ? settings.alignment : element_bytes;
  world_ = std::make_unique<World>(World{cuda_on_cpu::device_allocate(shift + bytes, alignment, name_.c_str())});
  data_ = static_cast<char*>(world_->allocation) + shift;
}
Memory::~Memory() { cuda_on_cpu::device_free(world_->allocation); }

// The host may write what kernels may not.
void Memory::write(const void* source) {
  cuda_on_cpu::device_protect(world_->allocation, false);
  if (bytes_ > 0) std::memcpy(data_, source, bytes_);
}
void Memory::read(void* target) const {
  if (bytes_ > 0) std::memcpy(target, data_, bytes_);
}
void Memory::poison(uint8_t pattern) {
  cuda_on_cpu::device_protect(world_->allocation, false);
  std::memset(data_, pattern, bytes_);
}
void Memory::protect() { cuda_on_cpu::device_protect(world_->allocation); }
std::string Memory::damage() const { return {}; }  // a launch says so itself

void set_roles(const std::vector<Memory*>& inputs, const std::vector<Memory*>& outputs) {
  for (const Memory* memory : inputs) cuda_on_cpu::device_protect(memory->world_->allocation, true);
  for (const Memory* memory : outputs) cuda_on_cpu::device_protect(memory->world_->allocation, false);
}

struct Graph::World {
  std::vector<Work> work;
};
Graph::Graph(std::unique_ptr<World> world) : world_(std::move(world)) {}
Graph::~Graph() = default;

struct Stream::World {
  bool is_capturing = false;
  std::vector<Work> captured;
};
Stream::Stream() : world_(std::make_unique<World>()) {}
Stream::~Stream() = default;

void Stream::run(const Work& work) {
  if (world_->is_capturing) {
    world_->captured.push_back(work);
  } else {
    finish(work(nullptr));
  }
}
void Stream::copy(void* target, const void* source, size_t bytes) {
  run([=](cuda::Stream) {
    std::memcpy(target, source, bytes);
    return 0;
  });
}
void Stream::wait() {}
void Stream::begin_capture() { world_->is_capturing = true; }
Graph* Stream::end_capture() {
  world_->is_capturing = false;
  return new Graph(std::make_unique<Graph::World>(Graph::World{std::exchange(world_->captured, {})}));
}
void Stream::launch(const Graph& graph) {
  for (const Work& work : graph.world().work) finish(work(nullptr));
}
double Stream::milliseconds(const Graph& graph, int launches) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < launches; ++i) launch(graph);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace test
}  // namespace vimtrt
