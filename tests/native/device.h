// What the test modules need of a device, in two worlds: the CPU double of CUDA (device_double.cpp) and a GPU
// (device_cuda.cpp). For one thread of the process at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "plugins/common/stream.h"
#include "tests/native/settings.h"

namespace vimtrt {
namespace test {

// "double" or "device".
extern const char* const kWorld;

// What is known of the device, by name.
std::vector<std::pair<std::string, std::string>> describe_device();

// The settings of what follows.
void begin(const Settings& settings);

// Waits for the device. Raises KernelError where `status`, the wait or a write beside any memory says that a kernel
// failed.
void finish(int status);

// More about the last failure, or nothing.
std::string last_error();

// Device memory for as long as it is in scope: poisoned inside, with a guard before and behind it. Its start is aligned
// to the settings' alignment and to no more than that, and begins `shift` elements later where the settings ask for it.
class Memory {
 public:
  Memory(const Settings& settings, size_t bytes, size_t element_bytes, std::string name);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }

  void write(const void* source);  // all bytes; done on return
  void read(void* target) const;   // all bytes; waits for the device
  void poison(uint8_t pattern);    // all bytes; done on return
  void protect();              // from here on a kernel's write to it is an error, until a launch has it as its output
  std::string damage() const;  // what a kernel wrote and may not, or nothing; waits for the device

 private:
  friend void set_roles(const std::vector<Memory*>& inputs, const std::vector<Memory*>& outputs);
  struct World;
  size_t bytes_;
  std::string name_;
  void* data_ = nullptr;
  std::unique_ptr<World> world_;
};

// Says of memory what the next launch does with it, so that the double can hold it to that.
void set_roles(const std::vector<Memory*>& inputs, const std::vector<Memory*>& outputs);

using Work = std::function<int(cuda::Stream)>;  // starts kernels; 0 or a cudaError_t

// What was captured, to be started again and again.
class Graph {
 public:
  struct World;
  explicit Graph(std::unique_ptr<World> world);
  ~Graph();
  World& world() const { return *world_; }

 private:
  std::unique_ptr<World> world_;
};

// An order of work. While it captures, work is recorded and nothing runs.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void run(const Work& work);  // raises KernelError where it does not start
  void copy(void* target, const void* source, size_t bytes);
  void wait();
  void begin_capture();
  Graph* end_capture();
  void launch(const Graph& graph);
  double milliseconds(const Graph& graph, int launches);  // of `launches` of them in a row, by the device's own clock

 private:
  struct World;
  std::unique_ptr<World> world_;
};

}  // namespace test
}  // namespace vimtrt
