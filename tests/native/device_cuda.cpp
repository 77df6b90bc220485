// The world of a GPU: memory of cudaMalloc with canaries around it, streams of their own, CUDA graphs. Beside the
// kernels it needs nothing but the CUDA runtime.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "tests/native/device.h"

namespace vimtrt {
namespace test {

const char* const kWorld = "device";

namespace {

constexpr uint8_t kCanary = 0xc3;
constexpr size_t kGuardBytes = 1024;  // before memory and behind it

void expect(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error of a launch is not reported a second time
  throw KernelError("cudaError " + std::to_string(status) + ": " + what + ": " + cudaGetErrorString(status));
}

// Everything the harness itself copies and fills is ordered by this stream; no kernel that is tested runs on it.
cudaStream_t own_stream() {
  static cudaStream_t stream = [] {
    cudaStream_t made = nullptr;
    expect(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "a stream");
    return made;
  }();
  return stream;
}

void copy_now(void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return;
  expect(cudaMemcpyAsync(target, source, bytes, kind, own_stream()), "a copy");
  expect(cudaStreamSynchronize(own_stream()), "a copy");
}

void fill_now(void* target, uint8_t pattern, size_t bytes) {
  if (bytes == 0) return;
  expect(cudaMemsetAsync(target, pattern, bytes, own_stream()), "a fill");
  expect(cudaStreamSynchronize(own_stream()), "a fill");
}

std::set<const Memory*>& all_memory() {
  static std::set<const Memory*> all;
  return all;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> describe_device() {
  cudaDeviceProp p{};
  int driver = 0, runtime = 0, clock_khz = 0, memory_khz = 0;
  expect(cudaGetDeviceProperties(&p, 0), "the device's properties");
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0);
  cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, 0);
  return {{"name", p.name},
          {"compute_capability", std::to_string(p.major) + "." + std::to_string(p.minor)},
          {"multiprocessors", std::to_string(p.multiProcessorCount)},
          {"l2_bytes", std::to_string(p.l2CacheSize)},
          {"memory_bytes", std::to_string(p.totalGlobalMem)},
          {"memory_bus_bits", std::to_string(p.memoryBusWidth)},
          {"clock_khz", std::to_string(clock_khz)},
          {"memory_clock_khz", std::to_string(memory_khz)},
          {"cuda_driver", std::to_string(driver)},
          {"cuda_runtime", std::to_string(runtime)}};
}

void begin(const Settings&) {}

void finish(int status) {
  expect(static_cast<cudaError_t>(status), "a launch");
  expect(cudaDeviceSynchronize(), "a kernel");
  for (const Memory* memory : all_memory()) {
    if (const std::string text = memory->damage(); !text.empty()) throw KernelError("damage: " + text);
  }
}

std::string last_error() { return {}; }

struct Memory::World {
  bool guards;
  uint8_t* allocation;
  size_t allocation_bytes;
  std::vector<uint8_t> expected;  // of protected memory
};

Memory::Memory(const Settings& settings, size_t bytes, size_t element_bytes, std::string name)
    : bytes_(bytes), name_(std::move(name)) {
  const size_t shift = settings.shifted.empty() || settings.shifted == name_ ? settings.shift * element_bytes : 0;
  const size_t alignment = std::max(settings.alignment, element_bytes);
  const size_t before =
      (settings.guards ? kGuardBytes + alignment : 0) + shift;  // an odd multiple of the alignment, and the shift
  const size_t total = before + bytes + (settings.guards ? kGuardBytes : 0);
  void* allocation = nullptr;
  expect(cudaMalloc(&allocation, std::max<size_t>(total, 1)), "memory for " + name_);
  world_ = std::make_unique<World>(World{settings.guards, static_cast<uint8_t*>(allocation), total, {}});
  data_ = world_->allocation + before;
  if (settings.guards) {
    fill_now(allocation, kCanary, total);
    poison(settings.of_double.poison);
  }
  all_memory().insert(this);
}

Memory::~Memory() {
  all_memory().erase(this);
  cudaFree(world_->allocation);
}

void Memory::write(const void* source) { copy_now(data_, source, bytes_, cudaMemcpyHostToDevice); }

void Memory::read(void* target) const {
  expect(cudaDeviceSynchronize(), "a kernel before " + name_ + " was read");
  copy_now(target, data_, bytes_, cudaMemcpyDeviceToHost);
}

void Memory::poison(uint8_t pattern) { fill_now(data_, pattern, bytes_); }

void Memory::protect() {
  if (!world_->guards) return;
  world_->expected.resize(bytes_);
  read(world_->expected.data());
}

std::string Memory::damage() const {
  if (!world_->guards) return {};
  const auto before = static_cast<size_t>(static_cast<uint8_t*>(data_) - world_->allocation);
  std::vector<uint8_t> bytes(world_->allocation_bytes - bytes_);
  copy_now(bytes.data(), world_->allocation, before, cudaMemcpyDeviceToHost);
  copy_now(bytes.data() + before, static_cast<uint8_t*>(data_) + bytes_, bytes.size() - before, cudaMemcpyDeviceToHost);
  const auto of_memory = [&](size_t index) {
    return "byte " + std::to_string(static_cast<int64_t>(index) - static_cast<int64_t>(before)) + " of " + name_ +
           " (" + std::to_string(bytes_) + " bytes) was written";
  };
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != kCanary) return of_memory(i < before ? i : i + bytes_);
  }
  if (!world_->expected.empty()) {
    std::vector<uint8_t> now(bytes_);
    copy_now(now.data(), data_, bytes_, cudaMemcpyDeviceToHost);
    const auto changed = std::mismatch(now.begin(), now.end(), world_->expected.begin()).first;
    if (changed != now.end()) return of_memory(before + static_cast<size_t>(changed - now.begin())) + ", an input";
  }
  return {};
}

void set_roles(const std::vector<Memory*>&, const std::vector<Memory*>&) {}

struct Graph::World {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
};
Graph::Graph(std::unique_ptr<World> world) : world_(std::move(world)) {}
Graph::~Graph() {
  cudaGraphExecDestroy(world_->instance);
  cudaGraphDestroy(world_->graph);
}

struct Stream::World {
  cudaStream_t stream = nullptr;
  cudaEvent_t start = nullptr, end = nullptr;
};
Stream::Stream() : world_(std::make_unique<World>()) {
  expect(cudaStreamCreateWithFlags(&world_->stream, cudaStreamNonBlocking), "a stream");
  expect(cudaEventCreate(&world_->start), "an event");
  expect(cudaEventCreate(&world_->end), "an event");
}
Stream::~Stream() {
  cudaEventDestroy(world_->start);
  cudaEventDestroy(world_->end);
  cudaStreamDestroy(world_->stream);
}

void Stream::run(const Work& work) { expect(static_cast<cudaError_t>(work(world_->stream)), "a launch"); }

void Stream::copy(void* target, const void* source, size_t bytes) {
  if (bytes > 0) expect(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, world_->stream), "a copy");
}

void Stream::wait() { expect(cudaStreamSynchronize(world_->stream), "a kernel"); }

void Stream::begin_capture() {
  expect(cudaStreamBeginCapture(world_->stream, cudaStreamCaptureModeThreadLocal), "the start of a capture");
}

Graph* Stream::end_capture() {
  auto graph = std::make_unique<Graph::World>();
  expect(cudaStreamEndCapture(world_->stream, &graph->graph), "the end of a capture");
  expect(cudaGraphInstantiate(&graph->instance, graph->graph, 0), "the making of a graph");
  return new Graph(std::move(graph));
}

void Stream::launch(const Graph& graph) {
  expect(cudaGraphLaunch(graph.world().instance, world_->stream), "the launch of a graph");
}

double Stream::milliseconds(const Graph& graph, int launches) {
  expect(cudaEventRecord(world_->start, world_->stream), "an event");
  for (int i = 0; i < launches; ++i) launch(graph);
  expect(cudaEventRecord(world_->end, world_->stream), "an event");
  expect(cudaEventSynchronize(world_->end), "a kernel");
  float milliseconds = 0;
  expect(cudaEventElapsedTime(&milliseconds, world_->start, world_->end), "the time between events");
  return milliseconds;
}

}  // namespace test
}  // namespace vimtrt
