// The executor of a GPU: a program whose steps are kernels, started one after the other on a stream. It takes no device
// memory: the caller uploads the constants and gives the memory that a batch needs, so that batches, streams and CUDA
// graphs share what they may.
//
//   CudaProgram program;
//   ..                                            // as a CpuProgram is made
//   program.write_constants(host);                // constant_bytes(), which the caller copies to the device
//   program.enqueue(batch, {constants, memory, inputs, outputs}, stream);
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "plugins/common/stream.h"
#include "plugins/executor/program.h"

namespace vimtrt {

struct CudaOperator;

class CudaProgram : public Program {
 public:
  // Of `constants` and `memory` in device memory, and of what lies in them.
  static constexpr int64_t kAlignment = 256;

  explicit CudaProgram(int64_t max_constant_bytes = kMaxConstantBytes) : Program(max_constant_bytes) {}

  // Device memory, by address: constants, `memory_bytes(batch)` of memory, inputs and outputs in finalize's order.
  struct Placement {
    const uint8_t* constants = nullptr;
    uint8_t* memory = nullptr;
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
  };

  // All constants, constant_bytes() of them, to host memory; once: they are gone from here.
  void write_constants(uint8_t* target);

  // What a batch needs beside constants, inputs and outputs: values, and behind them what a kernel needs for itself.
  int64_t memory_bytes(int64_t batch) const;

  // Of each launch: those of its steps.
  std::vector<std::string> step_names() const override;

  // Starts the launches `first` to `last`, exclusive, or all of them; asynchronous. The same memory serves one batch at
  // a time. Raises std::invalid_argument for what cannot be run, std::runtime_error with the step's name where a kernel
  // does not start.
  void enqueue(int64_t batch, const Placement& placement, cuda::Stream stream) const;
  void enqueue(int64_t batch, const Placement& placement, cuda::Stream stream, size_t first, size_t last) const;

 private:
  struct OperatorWork {
    const CudaOperator* cuda;
    OperatorStep step;
    std::vector<int64_t> offsets;  // of the inputs among the constants; -1: a value

    Arguments arguments(int64_t batch, const uint8_t* constants, uint8_t* const* values) const;
  };
  // Returns 0 or a cudaError_t.
  using CopyWork = std::function<int(int64_t batch, const uint8_t* constants, uint8_t* const* values, cuda::Stream)>;
  using Work = std::variant<OperatorWork, CopyWork>;

  // A step, or two that run beside each other.
  struct Launch {
    size_t step;
    std::optional<size_t> beside;
  };

  void build(OperatorStep step) override;
  void build(CopyStep step) override;
  void build(const GatherStep& step) override;
  std::vector<int> schedule() override;
  bool can_pair(size_t a, size_t b) const;
  std::string name(const Launch& launch) const;
  int start(const Launch& launch, int64_t batch, const uint8_t* constants, uint8_t* const* values, void* workspace,
            cuda::Stream stream) const;
  int64_t keep(const void* data, size_t bytes);
  int64_t values_bytes(int64_t batch) const;

  std::vector<Work> work_;  // of the steps
  std::vector<Launch> launches_;
  std::vector<uint8_t> constants_;
  bool constants_written_ = false;
};

}  // namespace vimtrt
