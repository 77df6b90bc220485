// The executor of the CPU: a program whose steps run one after the other, each on all threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "plugins/common/isa.h"
#include "plugins/common/threads.h"
#include "plugins/executor/program.h"
#include "plugins/executor/thread_choice.h"

namespace vimtrt {

// Memory aligned to 64 bytes.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);
  uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* memory) const;
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t size_ = 0;
};

class CpuProgram : public Program {
 public:
  CpuProgram(Isa isa, int threads, int64_t max_constant_bytes = kMaxConstantBytes);

  void set_threads(int threads);

  // Pointers in finalize's order, each to `batch` samples; outputs may overlap nothing. Allocates only when a batch
  // needs more memory than every one before it. Calls from several threads run one after the other. `seconds`, where
  // given, receives the time of each step, in order.
  void run(int64_t batch, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
           std::vector<double>* seconds = nullptr);

  Isa isa() const { return isa_; }
  int threads() const { return threads_; }

 private:
  struct Work {
    std::function<size_t(int64_t batch, int threads)> scratch_bytes;
    std::function<void(int64_t batch, uint8_t* const* values, void* scratch, int threads)> run;
  };

  void build(OperatorStep step) override;
  void build(CopyStep step) override;
  void build(const GatherStep& step) override;
  const void* keep(const void* data, size_t bytes);
  void run_steps(int64_t batch, std::vector<uint8_t*> pointers, std::vector<double>* seconds);

  Isa isa_;
  std::atomic<int> threads_;
  std::vector<Work> work_;  // of the steps
  std::vector<AlignedBuffer> constants_;
  AlignedBuffer arena_;
  AlignedBuffer scratch_;
  ThreadChoice thread_choice_;
  ThreadPool pool_;  // last: destroyed first, when its threads have left the steps
};

}  // namespace vimtrt
