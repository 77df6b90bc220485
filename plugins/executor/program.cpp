#include "plugins/executor/program.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "plugins/operators.h"

namespace vimtrt {

void fail_program(const std::string& name, const std::string& sentence) {
  throw std::invalid_argument((name.empty() ? "" : name + ": ") + sentence);
}

namespace {

constexpr int64_t kAlignment = 64;
// Far above any Vision Mamba, far below what would bring a machine down: a file of some megabytes could ask for
// gigabytes by copying copies.
constexpr int64_t kMaxArenaBytes = int64_t{1} << 30;  // of one sample

[[noreturn]] void fail(const std::string& name, const std::string& sentence) { fail_program(name, sentence); }

std::string number(int64_t value) { return std::to_string(value); }

// The product of sizes that are not negative.
int64_t product(const std::string& name, const std::vector<int64_t>& sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) {
    if (size < 0) fail(name, "a size is negative (" + number(size) + ")");
    if (__builtin_mul_overflow(result, size, &result)) fail(name, "the sizes multiply to more than 2^63");
  }
  return result;
}

int64_t round_up(const std::string& name, int64_t bytes) {
  if (bytes > INT64_MAX - kAlignment) fail(name, "the sizes add up to more than 2^63");
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

void check_dimension(const std::string& name, const char* what, int64_t size) {
  if (size < 1 || size > INT32_MAX) fail(name, std::string(what) + " is " + number(size) + ", expected 1 to 2^31 - 1");
}

bool overlap(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
  const auto a_begin = reinterpret_cast<uintptr_t>(a);
  const auto b_begin = reinterpret_cast<uintptr_t>(b);
  return a_begin < b_begin + static_cast<uintptr_t>(b_bytes) && b_begin < a_begin + static_cast<uintptr_t>(a_bytes);
}

}  // namespace

Arguments Program::OperatorStep::with_batch(int64_t batch) const {
  Arguments result = arguments;
  if (result.sizes['R'] == Sizes::kUnknown) result.sizes['R'] = batch;
  result.sizes['B'] = batch;
  return result;
}

Arguments Program::OperatorStep::placed(int64_t batch, uint8_t* const* values) const {
  Arguments result = with_batch(batch);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i] >= 0) result.inputs[i] = values[inputs[i]];
  }
  for (size_t i = 0; i < outputs.size(); ++i) result.outputs[i] = values[outputs[i]];
  return result;
}

int Program::add_value(int64_t bytes_per_sample) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (finalized_) fail("", "the program is finalized: nothing can be added");
  if (bytes_per_sample < 1) fail("", "a value has " + number(bytes_per_sample) + " bytes, expected at least 1");
  round_up("", bytes_per_sample);
  if (value_bytes_.size() >= INT32_MAX) fail("", "the program has too many values");
  value_bytes_.push_back(bytes_per_sample);
  return static_cast<int>(value_bytes_.size()) - 1;
}

int64_t Program::value_bytes(int value) const {
  if (value < 0 || value >= static_cast<int>(value_bytes_.size())) fail("", "there is no value " + number(value));
  return value_bytes_[static_cast<size_t>(value)];
}

void Program::check_value(const std::string& name, const char* role, int value, int64_t bytes) const {
  if (value < 0 || value >= static_cast<int>(value_bytes_.size()))
    fail(name, std::string(role) + " is " + number(value) + ", which is no value");
  const int64_t actual = value_bytes_[static_cast<size_t>(value)];
  if (actual != bytes) {
    fail(name, std::string(role) + " is value " + number(value) + " of " + number(actual) + " bytes, expected " +
                   number(bytes));
  }
}

// One constant may serve many operators, each of which packs it: the sum is checked, not the file.
void Program::take_constant_bytes(size_t bytes) {
  if (static_cast<int64_t>(bytes) > max_constant_bytes_ - constant_bytes_) {
    fail("", "the constants take more than " + number(max_constant_bytes_) + " bytes");
  }
  constant_bytes_ += static_cast<int64_t>(bytes);
}

// Called when everything else has been checked, before memory is taken.
Program::Step Program::new_step(const std::string& name, std::vector<int> reads, std::vector<int> writes) const {
  if (finalized_) fail(name, "the program is finalized: nothing can be added");
  if (steps_.size() >= kMaxSteps) fail(name, "the program has too many steps");
  for (const int value : writes) {
    if (std::count(writes.begin(), writes.end(), value) > 1) fail(name, "value " + number(value) + " is written twice");
    if (std::count(reads.begin(), reads.end(), value) > 0)
      fail(name, "value " + number(value) + " is read and written");
  }
  Step step;
  step.name = name;
  step.reads = std::move(reads);
  step.writes = std::move(writes);
  return step;
}

void Program::add(const OpDef& op, const std::string& name, const std::vector<Source>& inputs,
                  const std::vector<int>& outputs, const Attributes& attributes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Operand> operands;
  for (const Source& source : inputs) {
    Operand operand{source.type, source.shape, source.data};
    if (source.data == nullptr) operand.shape.insert(operand.shape.begin(), Sizes::kUnknown);
    operands.push_back(std::move(operand));
  }
  Arguments node;
  try {
    node = resolve(op, operands, attributes);
    check_counts(op, inputs.size(), outputs.size());
  } catch (const OpError& error) {
    fail(name, error.what());
  }
  std::vector<int> reads;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].data != nullptr) continue;
    check_value(name, op.inputs[i].name.c_str(), inputs[i].value,
                type_bytes(inputs[i].type) * product(name, inputs[i].shape));
    reads.push_back(inputs[i].value);
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    std::vector<int64_t> shape = output_shape(op, i, node.sizes);
    shape.erase(shape.begin());  // the batch
    check_value(name, op.outputs[i].name.c_str(), outputs[i],
                type_bytes(output_type(op, i, attributes)) * product(name, shape));
  }

  std::vector<int> values;
  std::vector<size_t> constant_bytes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool is_constant = inputs[i].data != nullptr;
    values.push_back(is_constant ? -1 : inputs[i].value);
    constant_bytes.push_back(
        is_constant ? static_cast<size_t>(type_bytes(inputs[i].type) * product(name, inputs[i].shape)) : 0);
    node.inputs[i] = inputs[i].data;
  }
  Step step = new_step(name, reads, outputs);
  build(OperatorStep{op, node, std::move(values), std::move(constant_bytes), outputs});
  steps_.push_back(std::move(step));
}

void Program::add_copy(const CopySpec& s) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_dimension(s.name, "element_bytes", s.element_bytes);
  if (s.shape.size() != s.src_strides.size()) {
    fail(s.name, "shape has " + std::to_string(s.shape.size()) + " dimensions, src_strides " +
                     std::to_string(s.src_strides.size()));
  }
  int64_t elements = 1;
  int64_t first = s.src_offset;  // the lowest and highest source element that is read
  int64_t last = s.src_offset;
  for (size_t d = 0; d < s.shape.size(); ++d) {
    check_dimension(s.name, "a dimension of shape", s.shape[d]);
    elements = product(s.name, {elements, s.shape[d]});
    int64_t reach;
    int64_t& end = s.src_strides[d] < 0 ? first : last;
    if (__builtin_mul_overflow(s.shape[d] - 1, s.src_strides[d], &reach) || __builtin_add_overflow(end, reach, &end)) {
      fail(s.name, "src_strides reach further than 2^63 elements");
    }
  }
  check_value(s.name, "y", s.y, product(s.name, {elements, s.element_bytes}));
  const int64_t src_bytes = value_bytes(s.x);
  if (first < 0 || last >= src_bytes / s.element_bytes) {
    fail(s.name, "the copy would read elements " + number(first) + " to " + number(last) + " of value " + number(s.x) +
                     ", which has " + number(src_bytes / s.element_bytes));
  }

  Step step = new_step(s.name, {s.x}, {s.y});
  build(CopyStep{simplify({s.element_bytes, s.shape, s.src_strides, s.src_offset}), src_bytes, s.x, s.y});
  steps_.push_back(std::move(step));
}

void Program::add_gather(const GatherSpec& s) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_dimension(s.name, "outer", s.outer);
  check_dimension(s.name, "axis_length", s.axis_length);
  check_dimension(s.name, "inner_bytes", s.inner_bytes);
  const int64_t count = static_cast<int64_t>(s.indices.size);
  check_dimension(s.name, "the number of indices", count);
  check_value(s.name, "x", s.x, product(s.name, {s.outer, s.axis_length, s.inner_bytes}));
  check_value(s.name, "y", s.y, product(s.name, {s.outer, count, s.inner_bytes}));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = s.indices.data[i];
    if (index < 0 || index >= s.axis_length) {
      fail(s.name,
           "indices holds " + number(index) + " at " + number(i) + ", expected 0 to " + number(s.axis_length - 1));
    }
  }

  Step step = new_step(s.name, {s.x}, {s.y});
  build(GatherStep{s.outer, s.axis_length, s.inner_bytes, s.indices, s.x, s.y});
  steps_.push_back(std::move(step));
}

void Program::finalize(const std::vector<int>& inputs, const std::vector<int>& outputs) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (finalized_) fail("", "the program is finalized already");
  if (outputs.empty()) fail("", "the program has no outputs");
  std::vector<bool> written(value_bytes_.size(), false);
  for (const int value : inputs) {
    value_bytes(value);
    if (written[static_cast<size_t>(value)]) fail("", "value " + number(value) + " is an input twice");
    written[static_cast<size_t>(value)] = true;
  }
  const std::vector<bool> is_input = written;
  for (const Step& step : steps_) {
    for (const int value : step.reads) {
      if (!written[static_cast<size_t>(value)])
        fail(step.name, "reads value " + number(value) + " before it is written");
    }
    for (const int value : step.writes) {
      if (written[static_cast<size_t>(value)])
        fail(step.name, "writes value " + number(value) + ", which is written already or an input");
      written[static_cast<size_t>(value)] = true;
    }
  }
  for (const int value : outputs) {
    value_bytes(value);
    if (is_input[static_cast<size_t>(value)]) fail("", "output value " + number(value) + " is an input: copy it");
    if (!written[static_cast<size_t>(value)]) fail("", "output value " + number(value) + " is never written");
    if (std::count(outputs.begin(), outputs.end(), value) > 1)
      fail("", "value " + number(value) + " is an output twice");
  }
  inputs_ = inputs;
  outputs_ = outputs;
  plan_arena();
  finalized_ = true;
}

std::vector<int> Program::schedule() {
  std::vector<int> times(steps_.size());
  std::iota(times.begin(), times.end(), 0);
  return times;
}

// Largest values first, each at the lowest offset that is free during its whole life.
void Program::plan_arena() {
  struct Life {
    int value;
    int first;  // the time of the step that writes it
    int last;   // the time of the last step that reads it
  };
  std::vector<bool> is_external(value_bytes_.size(), false);
  for (const int value : inputs_) is_external[static_cast<size_t>(value)] = true;
  for (const int value : outputs_) is_external[static_cast<size_t>(value)] = true;
  std::vector<Life> lives(value_bytes_.size(), Life{-1, -1, -1});
  const std::vector<int> times = schedule();
  for (size_t i = 0; i < steps_.size(); ++i) {
    for (const int value : steps_[i].writes) lives[static_cast<size_t>(value)] = {value, times[i], times[i]};
    for (const int value : steps_[i].reads) {
      int& last = lives[static_cast<size_t>(value)].last;
      last = std::max(last, times[i]);
    }
  }
  lives.erase(
      std::remove_if(lives.begin(), lives.end(),
                     [&](const Life& life) { return life.value < 0 || is_external[static_cast<size_t>(life.value)]; }),
      lives.end());
  std::stable_sort(lives.begin(), lives.end(), [&](const Life& a, const Life& b) {
    return value_bytes_[static_cast<size_t>(a.value)] > value_bytes_[static_cast<size_t>(b.value)];
  });

  arena_offset_.assign(value_bytes_.size(), -1);
  arena_bytes_ = 0;
  const auto bytes_of = [&](const Life& life) { return round_up("", value_bytes_[static_cast<size_t>(life.value)]); };
  const auto offset_of = [&](const Life& life) -> int64_t& { return arena_offset_[static_cast<size_t>(life.value)]; };
  std::vector<Life> placed;  // by offset
  for (const Life& life : lives) {
    int64_t offset = 0;
    const int64_t bytes = bytes_of(life);
    for (const Life& other : placed) {
      if (other.first > life.last || life.first > other.last) continue;
      if (offset_of(other) - offset >= bytes) break;
      offset = std::max(offset, offset_of(other) + bytes_of(other));
    }
    if (offset > INT64_MAX - bytes) fail("", "the arena is larger than 2^63 bytes");
    offset_of(life) = offset;
    arena_bytes_ = std::max(arena_bytes_, offset + bytes);
    const auto place = std::upper_bound(placed.begin(), placed.end(), offset,
                                        [&](int64_t at, const Life& other) { return at < offset_of(other); });
    placed.insert(place, life);
  }
  if (arena_bytes_ > kMaxArenaBytes)
    fail("", "the activations of one image take " + number(arena_bytes_) + " bytes, at most " + number(kMaxArenaBytes));
}

int64_t Program::arena_bytes_of(int64_t batch) const {
  if (!finalized_) fail("", "the program is not finalized");
  if (batch < 1) fail("", "batch is " + number(batch) + ", expected at least 1");
  for (const int64_t bytes : value_bytes_) product("", {batch, bytes});
  return product("", {batch, arena_bytes_});
}

std::vector<uint8_t*> Program::place(int64_t batch, uint8_t* arena, const std::vector<const void*>& inputs,
                                     const std::vector<void*>& outputs) const {
  if (inputs.size() != inputs_.size() || outputs.size() != outputs_.size()) {
    fail("", "got " + std::to_string(inputs.size()) + " inputs and " + std::to_string(outputs.size()) +
                 " outputs, expected " + std::to_string(inputs_.size()) + " and " + std::to_string(outputs_.size()));
  }

  const auto external_bytes = [&](int value) { return batch * value_bytes_[static_cast<size_t>(value)]; };
  for (size_t i = 0; i < outputs.size(); ++i) {
    for (size_t j = 0; j < inputs.size(); ++j) {
      if (overlap(outputs[i], external_bytes(outputs_[i]), inputs[j], external_bytes(inputs_[j]))) {
        fail("", "output " + std::to_string(i) + " shares memory with input " + std::to_string(j));
      }
    }
    for (size_t j = 0; j < i; ++j) {
      if (overlap(outputs[i], external_bytes(outputs_[i]), outputs[j], external_bytes(outputs_[j]))) {
        fail("", "outputs " + std::to_string(j) + " and " + std::to_string(i) + " share memory");
      }
    }
  }

  std::vector<uint8_t*> pointers(value_bytes_.size());
  for (size_t v = 0; v < pointers.size(); ++v)
    pointers[v] = arena_offset_[v] < 0 ? nullptr : arena + arena_offset_[v] * batch;
  // Inputs are only ever read: finalize has refused steps that write them.
  for (size_t i = 0; i < inputs.size(); ++i) {
    pointers[static_cast<size_t>(inputs_[i])] = static_cast<uint8_t*>(const_cast<void*>(inputs[i]));
  }
  for (size_t i = 0; i < outputs.size(); ++i)
    pointers[static_cast<size_t>(outputs_[i])] = static_cast<uint8_t*>(outputs[i]);
  return pointers;
}

std::vector<std::string> Program::step_names() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> names;
  for (const Step& step : steps_) names.push_back(step.name);
  return names;
}

}  // namespace vimtrt
