#include "plugins/executor/cuda_program.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "plugins/common/cuda_operator.h"
#include "plugins/common/cuda_status.h"
#include "plugins/executor/copy_cuda.h"
#include "plugins/operators.h"

namespace vimtrt {
namespace {

// How far back a step looks for one to run beside: past the other direction of the same layer.
constexpr size_t kPairDistance = 4;

int64_t round_up(int64_t bytes) {
  return (bytes + CudaProgram::kAlignment - 1) / CudaProgram::kAlignment * CudaProgram::kAlignment;
}

}  // namespace

// The offset of a copy among the constants.
int64_t CudaProgram::keep(const void* data, size_t bytes) {
  const auto offset = static_cast<int64_t>(constants_.size());
  const auto rounded = static_cast<size_t>(round_up(static_cast<int64_t>(bytes)));
  take_constant_bytes(rounded);
  constants_.resize(constants_.size() + rounded);
  std::memcpy(constants_.data() + offset, data, bytes);
  return offset;
}

void CudaProgram::build(OperatorStep step) {
  std::vector<int64_t> offsets;
  for (size_t i = 0; i < step.inputs.size(); ++i) {
    offsets.push_back(step.inputs[i] < 0 ? keep(step.arguments.inputs[i], step.constant_bytes[i]) : -1);
    step.arguments.inputs[i] = nullptr;
  }
  const CudaOperator& cuda = cuda_operator_of(step.op);
  work_.push_back(OperatorWork{&cuda, std::move(step), std::move(offsets)});
}

void CudaProgram::build(CopyStep step) {
  if (step.copy.shape.size() > kMostCopyDimensions) {
    fail_program("", "a copy has " + std::to_string(step.copy.shape.size()) +
                         " dimensions that cannot be joined, at most " + std::to_string(kMostCopyDimensions) +
                         " run on a GPU");
  }
  work_.push_back([step = std::move(step)](int64_t batch, const uint8_t*, uint8_t* const* values, cuda::Stream stream) {
    return strided_copy_launch(step.copy, batch, step.src_bytes, values[step.x], values[step.y], stream);
  });
}

void CudaProgram::build(const GatherStep& step) {
  const int64_t offset = keep(step.indices.data, step.indices.size * sizeof(int64_t));
  work_.push_back([step, offset](int64_t batch, const uint8_t* constants, uint8_t* const* values, cuda::Stream stream) {
    return gather_launch(batch * step.outer, step.axis_length, step.inner_bytes,
                         reinterpret_cast<const int64_t*>(constants + offset), static_cast<int64_t>(step.indices.size),
                         values[step.x], values[step.y], stream);
  });
}

bool CudaProgram::can_pair(size_t a, size_t b) const {
  const auto* one = std::get_if<OperatorWork>(&work_[a]);
  const auto* other = std::get_if<OperatorWork>(&work_[b]);
  return one != nullptr && other != nullptr && one->cuda == other->cuda && one->cuda->can_pair != nullptr &&
         one->cuda->can_pair(one->step.arguments, other->step.arguments);
}

// A step runs beside an earlier one that it could be started with, where all it reads is there by then: the two
// directions of a layer. Everything else keeps its order.
std::vector<int> CudaProgram::schedule() {
  std::vector<int> times = Program::schedule();
  launches_.clear();
  std::vector<size_t> beside(work_.size(), work_.size());
  std::vector<int> written;  // the time of each value; -1: an input
  for (size_t step = 0; step < work_.size(); ++step) {
    int ready = -1;
    for (const int value : step_reads(step)) {
      if (static_cast<size_t>(value) < written.size()) ready = std::max(ready, written[static_cast<size_t>(value)]);
    }
    for (size_t other = step - std::min(step, kPairDistance); other < step; ++other) {
      if (times[other] != static_cast<int>(other) || beside[other] != work_.size() || times[other] <= ready) continue;
      if (!can_pair(other, step)) continue;
      beside[other] = step;
      times[step] = times[other];
      break;
    }
    for (const int value : step_writes(step)) {
      if (static_cast<size_t>(value) >= written.size()) written.resize(static_cast<size_t>(value) + 1, -1);
      written[static_cast<size_t>(value)] = times[step];
    }
  }
  for (size_t step = 0; step < work_.size(); ++step) {
    if (times[step] != static_cast<int>(step)) continue;  // started with another
    launches_.push_back({step, beside[step] < work_.size() ? std::optional<size_t>(beside[step]) : std::nullopt});
  }
  return times;
}

std::string CudaProgram::name(const Launch& launch) const {
  return step_name(launch.step) + (launch.beside.has_value() ? " and " + step_name(*launch.beside) : "");
}

std::vector<std::string> CudaProgram::step_names() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> names;
  for (const Launch& launch : launches_) names.push_back(name(launch));
  return names;
}

void CudaProgram::write_constants(uint8_t* target) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!finalized()) fail_program("", "the program is not finalized");
  if (constants_written_) fail_program("", "the constants were written before, and are gone");
  std::copy(constants_.begin(), constants_.end(), target);
  constants_written_ = true;
  std::vector<uint8_t>().swap(constants_);
}

int64_t CudaProgram::values_bytes(int64_t batch) const {
  const int64_t bytes = arena_bytes_of(batch);
  if (bytes > INT64_MAX / 2) fail_program("", "the sizes multiply to more than 2^62");
  return round_up(bytes);
}

int64_t CudaProgram::memory_bytes(int64_t batch) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t workspace = 0;
  const int64_t values = values_bytes(batch);
  for (const Work& work : work_) {
    if (const auto* each = std::get_if<OperatorWork>(&work))
      workspace = std::max(workspace, each->cuda->workspace_bytes(each->step.with_batch(batch)));
  }
  return values + round_up(static_cast<int64_t>(workspace));
}

Arguments CudaProgram::OperatorWork::arguments(int64_t batch, const uint8_t* constants, uint8_t* const* values) const {
  Arguments result = step.placed(batch, values);
  for (size_t i = 0; i < offsets.size(); ++i) {
    if (offsets[i] >= 0) result.inputs[i] = constants + offsets[i];
  }
  return result;
}

int CudaProgram::start(const Launch& launch, int64_t batch, const uint8_t* constants, uint8_t* const* values,
                       void* workspace, cuda::Stream stream) const {
  if (const auto* copy = std::get_if<CopyWork>(&work_[launch.step])) return (*copy)(batch, constants, values, stream);
  const auto& work = std::get<OperatorWork>(work_[launch.step]);
  const Arguments arguments = work.arguments(batch, constants, values);
  if (!launch.beside.has_value()) return work.cuda->launch(arguments, stream, workspace);
  const auto& other = std::get<OperatorWork>(work_[*launch.beside]);
  return work.cuda->launch_pair(arguments, other.arguments(batch, constants, values), stream);
}

void CudaProgram::enqueue(int64_t batch, const Placement& placement, cuda::Stream stream) const {
  enqueue(batch, placement, stream, 0, launches_.size());
}

void CudaProgram::enqueue(int64_t batch, const Placement& placement, cuda::Stream stream, size_t first,
                          size_t last) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t values_size = values_bytes(batch);
  if (first > last || last > launches_.size()) {
    fail_program("", "the steps " + std::to_string(first) + " to " + std::to_string(last) + " are not among the " +
                         std::to_string(launches_.size()));
  }
  const std::vector<uint8_t*> values = place(batch, placement.memory, placement.inputs, placement.outputs);
  for (size_t i = first; i < last; ++i) {
    const int status =
        start(launches_[i], batch, placement.constants, values.data(), placement.memory + values_size, stream);
    if (status != 0) throw std::runtime_error(name(launches_[i]) + " did not start: " + cuda::status_text(status));
  }
}

}  // namespace vimtrt
