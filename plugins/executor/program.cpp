#include "plugins/executor/program.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>

#include "plugins/common/cpu_operator.h"
#include "plugins/common/threads.h"
#include "plugins/executor/copy_cpu.h"
#include "plugins/operators.h"

namespace vimtrt {
namespace {

constexpr int64_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kMaxThreads = 1024;
// Far above any Vision Mamba, far below what would bring a machine down: a file of some megabytes could ask for
// gigabytes by copying copies.
constexpr int64_t kMaxArenaBytes = int64_t{1} << 30;  // of one sample

[[noreturn]] void fail(const std::string& name, const std::string& sentence) {
  throw std::invalid_argument((name.empty() ? "" : name + ": ") + sentence);
}

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

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Long sequences are read with strides of many pages: small ones would be looked up again and again. What the system
  // does not grant costs nothing.
  if (alignment == kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  data_.reset(static_cast<uint8_t*>(memory));
}

void AlignedBuffer::Free::operator()(uint8_t* memory) const { std::free(memory); }

Program::Program(Isa isa, int threads, int64_t max_constant_bytes)
    : isa_(isa), threads_(1), max_constant_bytes_(max_constant_bytes) {
  const std::vector<Isa> isas = available_isas();
  if (std::find(isas.begin(), isas.end(), isa) == isas.end()) {
    fail("", std::string("instruction set ") + isa_name(isa) + " cannot run on this machine");
  }
  set_threads(threads);
}

void Program::set_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads)
    fail("", "threads is " + number(threads) + ", expected 1 to " + number(kMaxThreads));
  const std::lock_guard<std::mutex> lock(mutex_);
  threads_ = threads;
  thread_choice_.forget();
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

// A copy in the program's own memory.
const void* Program::keep(const void* data, size_t bytes) {
  take_constant_bytes(bytes);
  AlignedBuffer buffer(bytes);
  std::memcpy(buffer.data(), data, bytes);
  constants_.push_back(std::move(buffer));
  return constants_.back().data();
}

// Called when everything else has been checked, before memory is taken.
Program::Step Program::new_step(const std::string& name, std::vector<int> reads, std::vector<int> writes) const {
  if (finalized_) fail(name, "the program is finalized: nothing can be added");
  if (steps_.size() + 1 >= kMaxTeamCalls) fail(name, "the program has too many steps");
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

  Step step = new_step(name, reads, outputs);
  const CpuOperator& cpu = cpu_operator_of(op);
  const size_t packed_bytes = cpu.packed_bytes(isa_, node);
  const void* packed = nullptr;
  if (packed_bytes > 0) {
    take_constant_bytes(packed_bytes);
    AlignedBuffer buffer(packed_bytes);
    cpu.pack(isa_, node, buffer.data());
    constants_.push_back(std::move(buffer));
    packed = constants_.back().data();
  }
  std::vector<int> values;  // of the inputs; -1: a constant
  for (size_t i = 0; i < inputs.size(); ++i) {
    values.push_back(inputs[i].data == nullptr ? inputs[i].value : -1);
    if (inputs[i].data == nullptr) continue;
    const bool is_needed = packed == nullptr || !op.inputs[i].is_packed;
    const size_t bytes = static_cast<size_t>(type_bytes(inputs[i].type) * product(name, inputs[i].shape));
    node.inputs[i] = is_needed ? keep(inputs[i].data, bytes) : nullptr;
  }
  const bool follows_batch = node.sizes['R'] == Sizes::kUnknown;
  const auto with_batch = [node, follows_batch](int64_t batch) {
    Arguments arguments = node;
    arguments.sizes['B'] = batch;
    if (follows_batch) arguments.sizes['R'] = batch;
    return arguments;
  };
  step.scratch_bytes = [&cpu, isa = isa_, with_batch](int64_t batch, int threads) {
    return cpu.scratch_bytes(isa, with_batch(batch), threads);
  };
  step.run = [&cpu, isa = isa_, with_batch, packed, values, outputs](int64_t batch, uint8_t* const* memory,
                                                                     void* scratch, int threads) {
    Arguments arguments = with_batch(batch);
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i] >= 0) arguments.inputs[i] = memory[values[i]];
    }
    for (size_t i = 0; i < outputs.size(); ++i) arguments.outputs[i] = memory[outputs[i]];
    cpu.run(isa, arguments, packed, scratch, threads);
  };
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
  step.run = [copy = simplify({s.element_bytes, s.shape, s.src_strides, s.src_offset}), x = s.x, y = s.y, src_bytes](
                 int64_t batch, uint8_t* const* values, void*, int threads) {
    strided_copy(copy, batch, src_bytes, values[x], values[y], threads);
  };
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
  step.run = [x = s.x, y = s.y, outer = s.outer, axis_length = s.axis_length, inner_bytes = s.inner_bytes,
              indices = static_cast<const int64_t*>(keep(s.indices.data, s.indices.size * sizeof(int64_t))),
              count](int64_t batch, uint8_t* const* values, void*, int threads) {
    gather(batch * outer, axis_length, inner_bytes, indices, count, values[x], values[y], threads);
  };
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

// Largest values first, each at the lowest offset that is free during its whole life.
void Program::plan_arena() {
  struct Life {
    int value;
    int first;  // the step that writes it
    int last;   // the last step that reads it
  };
  std::vector<bool> is_external(value_bytes_.size(), false);
  for (const int value : inputs_) is_external[static_cast<size_t>(value)] = true;
  for (const int value : outputs_) is_external[static_cast<size_t>(value)] = true;
  std::vector<Life> lives(value_bytes_.size(), Life{-1, -1, -1});
  for (size_t i = 0; i < steps_.size(); ++i) {
    const int step = static_cast<int>(i);
    for (const int value : steps_[i].writes) lives[static_cast<size_t>(value)] = {value, step, step};
    for (const int value : steps_[i].reads) lives[static_cast<size_t>(value)].last = step;
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

void Program::run(int64_t batch, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                  std::vector<double>* seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!finalized_) fail("", "the program is not finalized");
  if (batch < 1) fail("", "batch is " + number(batch) + ", expected at least 1");
  if (inputs.size() != inputs_.size() || outputs.size() != outputs_.size()) {
    fail("", "got " + std::to_string(inputs.size()) + " inputs and " + std::to_string(outputs.size()) +
                 " outputs, expected " + std::to_string(inputs_.size()) + " and " + std::to_string(outputs_.size()));
  }
  const int64_t arena_bytes = product("", {batch, arena_bytes_});
  for (const int64_t bytes : value_bytes_) product("", {batch, bytes});

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

  size_t scratch_bytes = 0;
  for (const Step& step : steps_) {
    if (step.scratch_bytes) scratch_bytes = std::max(scratch_bytes, step.scratch_bytes(batch, threads_));
  }
  if (scratch_bytes > scratch_.size()) scratch_ = AlignedBuffer(scratch_bytes);
  if (static_cast<size_t>(arena_bytes) > arena_.size()) {
    arena_ = AlignedBuffer();  // not both at once
    arena_ = AlignedBuffer(static_cast<size_t>(arena_bytes));
  }

  std::vector<uint8_t*> pointers(value_bytes_.size());
  for (size_t v = 0; v < pointers.size(); ++v)
    pointers[v] = arena_offset_[v] < 0 ? nullptr : arena_.data() + arena_offset_[v] * batch;
  // Inputs are only ever read: finalize has refused steps that write them.
  for (size_t i = 0; i < inputs.size(); ++i) {
    pointers[static_cast<size_t>(inputs_[i])] = static_cast<uint8_t*>(const_cast<void*>(inputs[i]));
  }
  for (size_t i = 0; i < outputs.size(); ++i)
    pointers[static_cast<size_t>(outputs_[i])] = static_cast<uint8_t*>(outputs[i]);
  if (seconds != nullptr) seconds->assign(steps_.size(), 0.0);
  run_steps(batch, std::move(pointers), seconds);
}

void Program::run_steps(int64_t batch, std::vector<uint8_t*> pointers, std::vector<double>* seconds) {
  const int threads = seconds == nullptr ? thread_choice_.choose(batch, threads_) : threads_.load();
  // A thread of the pool may still be on its way through steps that are done when this function has returned, and
  // touches nothing but what it holds itself and the program.
  const auto team = threads > 1 ? std::make_shared<Team>(threads) : nullptr;
  const auto run_all = [this, batch, threads, team, scratch = scratch_.data(), values = std::move(pointers),
                        seconds](int worker) {
    std::optional<TeamMember> member;
    if (team != nullptr) member.emplace(*team, worker, threads);
    for (size_t i = 0; i < steps_.size(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      steps_[i].run(batch, values.data(), scratch, threads);
      if (worker == 0 && seconds != nullptr)
        (*seconds)[i] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
  };
  const auto start = Clock::now();
  pool_.run(threads, std::make_shared<const ThreadPool::Work>(run_all));
  if (threads_ > 1 && seconds == nullptr)
    thread_choice_.record(batch, threads, std::chrono::duration<double>(Clock::now() - start).count());
}

std::vector<std::string> Program::step_names() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> names;
  for (const Step& step : steps_) names.push_back(step.name);
  return names;
}

}  // namespace vimtrt
