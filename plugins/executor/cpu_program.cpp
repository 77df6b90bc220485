#include "plugins/executor/cpu_program.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include "plugins/common/cpu_operator.h"
#include "plugins/executor/copy_cpu.h"
#include "plugins/operators.h"

namespace vimtrt {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kMaxThreads = 1024;
static_assert(Program::kMaxSteps < kMaxTeamCalls, "a team goes through all steps");

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

CpuProgram::CpuProgram(Isa isa, int threads, int64_t max_constant_bytes)
    : Program(max_constant_bytes), isa_(isa), threads_(1) {
  const std::vector<Isa> isas = available_isas();
  if (std::find(isas.begin(), isas.end(), isa) == isas.end())
    fail_program("", std::string("instruction set ") + isa_name(isa) + " cannot run on this machine");
  set_threads(threads);
}

void CpuProgram::set_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    fail_program("", "threads is " + std::to_string(threads) + ", expected 1 to " + std::to_string(kMaxThreads));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  threads_ = threads;
  thread_choice_.forget();
}

// A copy in the program's own memory.
const void* CpuProgram::keep(const void* data, size_t bytes) {
  take_constant_bytes(bytes);
  AlignedBuffer buffer(bytes);
  std::memcpy(buffer.data(), data, bytes);
  constants_.push_back(std::move(buffer));
  return constants_.back().data();
}

void CpuProgram::build(OperatorStep step) {
  const CpuOperator& cpu = cpu_operator_of(step.op);
  const size_t packed_bytes = cpu.packed_bytes(isa_, step.arguments);
  const void* packed = nullptr;
  if (packed_bytes > 0) {
    take_constant_bytes(packed_bytes);
    AlignedBuffer buffer(packed_bytes);
    cpu.pack(isa_, step.arguments, buffer.data());
    constants_.push_back(std::move(buffer));
    packed = constants_.back().data();
  }
  for (size_t i = 0; i < step.inputs.size(); ++i) {
    if (step.inputs[i] >= 0) continue;
    const bool is_needed = packed == nullptr || !step.op.inputs[i].is_packed;
    step.arguments.inputs[i] = is_needed ? keep(step.arguments.inputs[i], step.constant_bytes[i]) : nullptr;
  }
  const auto shared = std::make_shared<const OperatorStep>(std::move(step));
  work_.push_back(
      {[&cpu, isa = isa_, shared](int64_t batch, int threads) {
         return cpu.scratch_bytes(isa, shared->with_batch(batch), threads);
       },
       [&cpu, isa = isa_, shared, packed](int64_t batch, uint8_t* const* values, void* scratch, int threads) {
         cpu.run(isa, shared->placed(batch, values), packed, scratch, threads);
       }});
}

void CpuProgram::build(CopyStep step) {
  work_.push_back({nullptr, [step = std::move(step)](int64_t batch, uint8_t* const* values, void*, int threads) {
                     strided_copy(step.copy, batch, step.src_bytes, values[step.x], values[step.y], threads);
                   }});
}

void CpuProgram::build(const GatherStep& step) {
  const void* indices = keep(step.indices.data, step.indices.size * sizeof(int64_t));
  work_.push_back({nullptr, [step, indices](int64_t batch, uint8_t* const* values, void*, int threads) {
                     gather(batch * step.outer, step.axis_length, step.inner_bytes,
                            static_cast<const int64_t*>(indices), static_cast<int64_t>(step.indices.size),
                            values[step.x], values[step.y], threads);
                   }});
}

void CpuProgram::run(int64_t batch, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                     std::vector<double>* seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto arena_bytes = static_cast<size_t>(arena_bytes_of(batch));
  place(batch, nullptr, inputs, outputs);  // what cannot be run takes no memory
  size_t scratch_bytes = 0;
  for (const Work& work : work_) {
    if (work.scratch_bytes) scratch_bytes = std::max(scratch_bytes, work.scratch_bytes(batch, threads_));
  }
  if (scratch_bytes > scratch_.size()) scratch_ = AlignedBuffer(scratch_bytes);
  if (arena_bytes > arena_.size()) {
    arena_ = AlignedBuffer();  // not both at once
    arena_ = AlignedBuffer(arena_bytes);
  }
  if (seconds != nullptr) seconds->assign(work_.size(), 0.0);
  run_steps(batch, place(batch, arena_.data(), inputs, outputs), seconds);
}

void CpuProgram::run_steps(int64_t batch, std::vector<uint8_t*> pointers, std::vector<double>* seconds) {
  const int threads = seconds == nullptr ? thread_choice_.choose(batch, threads_) : threads_.load();
  // A thread of the pool may still be on its way through steps that are done when this function has returned, and
  // touches nothing but what it holds itself and the program.
  const auto team = threads > 1 ? std::make_shared<Team>(threads) : nullptr;
  const auto run_all = [this, batch, threads, team, scratch = scratch_.data(), values = std::move(pointers),
                        seconds](int worker) {
    std::optional<TeamMember> member;
    if (team != nullptr) member.emplace(*team, worker, threads);
    for (size_t i = 0; i < work_.size(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      work_[i].run(batch, values.data(), scratch, threads);
      if (worker == 0 && seconds != nullptr)
        (*seconds)[i] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
  };
  const auto start = Clock::now();
  pool_.run(threads, std::make_shared<const ThreadPool::Work>(run_all));
  if (threads_ > 1 && seconds == nullptr)
    thread_choice_.record(batch, threads, std::chrono::duration<double>(Clock::now() - start).count());
}

}  // namespace vimtrt
