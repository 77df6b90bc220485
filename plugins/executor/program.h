// The native engine's executor: a list of operators over values, run one after the other on the CPU. It knows neither
// ONNX nor Python.
//
//   Program program(available_isas().front(), threads);
//   const int x = program.add_value(bytes), y = program.add_value(bytes);
//   program.add(operator_named("KScaledLinear"), "in_proj", {{x, Type::kInt8, {tokens, features}}, ..}, {y},
//   attributes); program.finalize({x}, {y}); program.run(batch, {x_pointer}, {y_pointer});
//
// A value is a batch of activations, dense, dimension 0 being B; its size is given for one sample. Every value is
// written once. Values that are inputs or outputs of the program live in the caller's memory, the others in one arena,
// where values that are not alive together share bytes. Everything that can be wrong is found by the add_ functions and
// by finalize, and thrown as std::invalid_argument.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "plugins/common/isa.h"
#include "plugins/common/op.h"
#include "plugins/common/threads.h"
#include "plugins/executor/thread_choice.h"

namespace vimtrt {

// A borrowed constant array; `size` counts elements.
template <class T>
struct Array {
  const T* data = nullptr;
  size_t size = 0;
};

// An input of a node: an activation (a value and its shape of one sample) or a constant (its whole
// shape and its values).
struct Source {
  int value = -1;
  Type type;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

// y, dense of `shape`, takes x's element src_offset + sum(index[d] * src_strides[d]): a Transpose, a Slice,
// a Flip, a broadcast.
struct CopySpec {
  std::string name;
  int x = -1;
  int y = -1;
  int64_t element_bytes = 0;
  std::vector<int64_t> shape;        // of one sample
  std::vector<int64_t> src_strides;  // in elements
  int64_t src_offset = 0;            // in elements
};

// y[o, j] = x[o, indices[j]], where x is [outer, axis_length, inner_bytes] for one sample.
struct GatherSpec {
  std::string name;
  int x = -1;
  int y = -1;
  int64_t outer = 0;
  int64_t axis_length = 0;
  int64_t inner_bytes = 0;
  Array<int64_t> indices;
};

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

class Program {
 public:
  // Far above any Vision Mamba: Vim-Base packs to 200 MB.
  static constexpr int64_t kMaxConstantBytes = int64_t{4} << 30;

  Program(Isa isa, int threads, int64_t max_constant_bytes = kMaxConstantBytes);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void set_threads(int threads);

  int add_value(int64_t bytes_per_sample);
  // A node of an operator; constants are copied.
  void add(const OpDef& op, const std::string& name, const std::vector<Source>& inputs, const std::vector<int>& outputs,
           const Attributes& attributes);
  void add_copy(const CopySpec& spec);
  void add_gather(const GatherSpec& spec);

  // Checks that every value is written before it is read and plans the arena. Nothing can be added afterwards.
  void finalize(const std::vector<int>& inputs, const std::vector<int>& outputs);

  // Pointers in finalize's order, each to `batch` samples; outputs may overlap nothing. Allocates only when a batch
  // needs more memory than every one before it. Calls from several threads run one after the other. `seconds`, where
  // given, receives the time of each operator, in order.
  void run(int64_t batch, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
           std::vector<double>* seconds = nullptr);

  bool finalized() const { return finalized_; }
  Isa isa() const { return isa_; }
  int threads() const { return threads_; }
  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<int>& outputs() const { return outputs_; }
  int64_t value_bytes(int value) const;  // of one sample

  int64_t arena_bytes() const { return arena_bytes_; }  // of one sample
  int64_t constant_bytes() const { return constant_bytes_; }

  std::vector<std::string> step_names() const;  // one per operator, in order

 private:
  struct Step {
    std::string name;
    std::vector<int> reads;
    std::vector<int> writes;
    std::function<size_t(int64_t batch, int threads)> scratch_bytes;
    std::function<void(int64_t batch, uint8_t* const* values, void* scratch, int threads)> run;
  };

  const void* keep(const void* data, size_t bytes);
  void check_value(const std::string& name, const char* role, int value, int64_t bytes) const;
  Step new_step(const std::string& name, std::vector<int> reads, std::vector<int> writes) const;
  void take_constant_bytes(size_t bytes);
  void plan_arena();
  void run_steps(int64_t batch, std::vector<uint8_t*> pointers, std::vector<double>* seconds);

  Isa isa_;
  std::atomic<int> threads_;
  bool finalized_ = false;
  std::vector<int64_t> value_bytes_;
  std::vector<Step> steps_;
  std::vector<AlignedBuffer> constants_;
  int64_t constant_bytes_ = 0;
  int64_t max_constant_bytes_;
  std::vector<int> inputs_;
  std::vector<int> outputs_;
  std::vector<int64_t> arena_offset_;  // of one sample, times the batch; -1: caller's memory
  int64_t arena_bytes_ = 0;
  AlignedBuffer arena_;
  AlignedBuffer scratch_;
  ThreadChoice thread_choice_;
  mutable std::mutex mutex_;
  ThreadPool pool_;  // last: destroyed first, when its threads have left the steps
};

}  // namespace vimtrt
