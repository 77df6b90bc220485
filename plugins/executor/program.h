// A network as a list of steps over values, checked, with the memory planned that they share: what the executors of a
// CPU and of a GPU are made of. It knows neither ONNX nor Python.
//
//   CpuProgram program(available_isas().front(), threads);
//   const int x = program.add_value(bytes), y = program.add_value(bytes);
//   program.add(operator_named("KScaledLinear"), "in_proj", {{x, Type::kInt8, {tokens, features}}, ..}, {y},
//   attributes); program.finalize({x}, {y}); program.run(batch, {x_pointer}, {y_pointer});
//
// A value is a batch of activations, dense, dimension 0 being B; its size is given for one sample. Every value is
// written once. Values that are inputs or outputs of the program live in the caller's memory, the others in one arena,
// where values that are not alive together share bytes. Everything that can be wrong is found by the add_ functions and
// by finalize, and thrown as std::invalid_argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "plugins/common/op.h"
#include "plugins/executor/copy.h"

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

class Program {
 public:
  // Far above any Vision Mamba: Vim-Base packs to 200 MB.
  static constexpr int64_t kMaxConstantBytes = int64_t{4} << 30;
  static constexpr size_t kMaxSteps = (size_t{1} << 24) - 2;

  explicit Program(int64_t max_constant_bytes) : max_constant_bytes_(max_constant_bytes) {}
  virtual ~Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  int add_value(int64_t bytes_per_sample);
  // A node of an operator; constants are copied.
  void add(const OpDef& op, const std::string& name, const std::vector<Source>& inputs, const std::vector<int>& outputs,
           const Attributes& attributes);
  void add_copy(const CopySpec& spec);
  void add_gather(const GatherSpec& spec);

  // Checks that every value is written before it is read and plans the arena. Nothing can be added afterwards.
  void finalize(const std::vector<int>& inputs, const std::vector<int>& outputs);

  bool finalized() const { return finalized_; }
  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<int>& outputs() const { return outputs_; }
  int64_t value_bytes(int value) const;  // of one sample

  int64_t arena_bytes() const { return arena_bytes_; }  // of one sample
  int64_t constant_bytes() const { return constant_bytes_; }

  virtual std::vector<std::string> step_names() const;  // in order

 protected:
  // An operator of a step, its arguments but for the batch: of the inputs, constants point to the caller's memory.
  struct OperatorStep {
    const OpDef& op;
    Arguments arguments;
    std::vector<int> inputs;             // values; -1: a constant
    std::vector<size_t> constant_bytes;  // of the inputs
    std::vector<int> outputs;

    Arguments with_batch(int64_t batch) const;
    // Those of a batch, in memory.
    Arguments placed(int64_t batch, uint8_t* const* values) const;
  };
  struct CopyStep {
    StridedCopy copy;   // simplified
    int64_t src_bytes;  // of one sample
    int x, y;
  };
  struct GatherStep {
    int64_t outer, axis_length, inner_bytes;
    Array<int64_t> indices;  // the caller's
    int x, y;
  };

  // Make what runs the next step. What they throw leaves the program as it was.
  virtual void build(OperatorStep step) = 0;
  virtual void build(CopyStep step) = 0;
  virtual void build(const GatherStep& step) = 0;

  // When each step runs. Steps of the same time run beside each other; the others one after the other, by their times.
  // Asked once, when all steps are known. A step's own number, where nothing else is said.
  virtual std::vector<int> schedule();
  size_t step_count() const { return steps_.size(); }
  const std::vector<int>& step_reads(size_t step) const { return steps_[step].reads; }
  const std::vector<int>& step_writes(size_t step) const { return steps_[step].writes; }

  // Of memory that the constants take: the sum is limited, as a file may name one of them many times.
  void take_constant_bytes(size_t bytes);

  // Where every value is for a batch whose arena begins at `arena`; raises std::invalid_argument for what cannot be
  // run.
  std::vector<uint8_t*> place(int64_t batch, uint8_t* arena, const std::vector<const void*>& inputs,
                              const std::vector<void*>& outputs) const;
  // Of a batch; raises std::invalid_argument where the program cannot be run or the sizes are beyond any memory.
  int64_t arena_bytes_of(int64_t batch) const;
  const std::string& step_name(size_t step) const { return steps_[step].name; }

  mutable std::mutex mutex_;

 private:
  struct Step {
    std::string name;
    std::vector<int> reads;
    std::vector<int> writes;
  };

  void check_value(const std::string& name, const char* role, int value, int64_t bytes) const;
  Step new_step(const std::string& name, std::vector<int> reads, std::vector<int> writes) const;
  void plan_arena();

  bool finalized_ = false;
  std::vector<int64_t> value_bytes_;
  std::vector<Step> steps_;
  int64_t constant_bytes_ = 0;
  int64_t max_constant_bytes_;
  std::vector<int> inputs_;
  std::vector<int> outputs_;
  std::vector<int64_t> arena_offset_;  // of one sample, times the batch; -1: caller's memory
  int64_t arena_bytes_ = 0;
};

// Raises std::invalid_argument: "name: sentence", or the sentence where there is no name.
[[noreturn]] void fail_program(const std::string& name, const std::string& sentence);

}  // namespace vimtrt
