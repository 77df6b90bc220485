#include "plugins/python/program.h"

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

#include "plugins/add_rms_norm_quant/cpu.h"
#include "plugins/bidirectional_scan/cpu.h"
#include "plugins/common/threads.h"
#include "plugins/kscaled_linear/cpu.h"
#include "plugins/python/copy_cpu.h"
#include "plugins/quant_conv1d_silu/cpu.h"

namespace vimtrt {
namespace {

constexpr int64_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxInFeatures = 65536;  // the largest sum that fits int32
constexpr int64_t kTableSize = 256;
// Far above any Vision Mamba, far below what would bring a machine down: a file of some megabytes could ask for gigabytes by copying
// copies.
constexpr int64_t kMaxArenaBytes = int64_t{1} << 30;  // of one sample

[[noreturn]] void fail(const std::string& name, const std::string& sentence) {
  throw std::invalid_argument((name.empty() ? "" : name + ": ") + sentence);
}

std::string number(int64_t value) { return std::to_string(value); }

// The product of sizes that are not negative.
int64_t product(const std::string& name, std::initializer_list<int64_t> sizes) {
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

// A row of `width` elements must hold `count` of them from `offset` on.
void check_columns(const std::string& name, const char* what, int64_t width, int64_t offset, int64_t count) {
  check_dimension(name, (std::string(what) + "_width").c_str(), width);
  if (offset < 0 || count > width || offset > width - count) {
    fail(name, std::string(what) + "_offset " + number(offset) + " and " + number(count) + " columns do not fit into " + what + "_width " +
                   number(width));
  }
}

template <class T>
void check_size(const std::string& name, const char* what, const Array<T>& array, std::initializer_list<int64_t> shape) {
  const int64_t expected = product(name, shape);
  if (array.data == nullptr || static_cast<int64_t>(array.size) != expected) {
    fail(name, std::string(what) + " has " + number(static_cast<int64_t>(array.size)) + " elements, expected " + number(expected));
  }
}

void check_floats(const std::string& name, const char* what, const Array<float>& array, std::initializer_list<int64_t> shape) {
  check_size(name, what, array, shape);
  for (size_t i = 0; i < array.size; ++i) {
    if (!std::isfinite(array.data[i])) fail(name, std::string(what) + " holds a value that is not finite at index " + std::to_string(i));
  }
}

void check_tables(const std::string& name, const Array<int8_t>& table, const Array<int32_t>& table_id, int64_t ids, int32_t smallest_id) {
  if (table.data == nullptr || table.size == 0 || table.size % kTableSize != 0 || table.size > INT32_MAX) {
    fail(name, "table has " + std::to_string(table.size) + " elements, expected a positive multiple of 256 below 2^31");
  }
  check_size(name, "table_id", table_id, {ids});
  const int64_t tables = static_cast<int64_t>(table.size) / kTableSize;
  for (size_t i = 0; i < table_id.size; ++i) {
    const int32_t id = table_id.data[i];
    if (id < smallest_id || id >= tables) {
      fail(name, "table_id holds " + number(id) + " at index " + std::to_string(i) + ", expected " + number(smallest_id) + " to " +
                     number(tables - 1));
    }
  }
}

bool overlap(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
  const auto a_begin = reinterpret_cast<uintptr_t>(a);
  const auto b_begin = reinterpret_cast<uintptr_t>(b);
  return a_begin < b_begin + static_cast<uintptr_t>(b_bytes) && b_begin < a_begin + static_cast<uintptr_t>(a_bytes);
}

int8_t* as_int8(uint8_t* pointer) { return reinterpret_cast<int8_t*>(pointer); }
float* as_float(uint8_t* pointer) { return reinterpret_cast<float*>(pointer); }

}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Long sequences are read with strides of many pages: small ones would be looked up again and again. What the system does not grant costs
  // nothing.
  if (alignment == kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  data_.reset(static_cast<uint8_t*>(memory));
}

void AlignedBuffer::Free::operator()(uint8_t* memory) const { std::free(memory); }

Program::Program(Isa isa, int threads, int64_t max_constant_bytes) : isa_(isa), threads_(1), max_constant_bytes_(max_constant_bytes) {
  const std::vector<Isa> isas = available_isas();
  if (std::find(isas.begin(), isas.end(), isa) == isas.end()) {
    fail("", std::string("instruction set ") + isa_name(isa) + " cannot run on this machine");
  }
  set_threads(threads);
}

void Program::set_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) fail("", "threads is " + number(threads) + ", expected 1 to " + number(kMaxThreads));
  const std::lock_guard<std::mutex> lock(mutex_);
  threads_ = threads;
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
    fail(name, std::string(role) + " is value " + number(value) + " of " + number(actual) + " bytes, expected " + number(bytes));
  }
}

// One constant may serve many operators, each of which packs it: the sum is checked, not the file.
void Program::take_constant_bytes(size_t bytes) {
  if (static_cast<int64_t>(bytes) > max_constant_bytes_ - constant_bytes_) {
    fail("", "the constants take more than " + number(max_constant_bytes_) + " bytes");
  }
  constant_bytes_ += static_cast<int64_t>(bytes);
}

// A copy of the array in the program's own memory.
template <class T>
const T* Program::keep(const Array<T>& array) {
  if (array.size == 0) return nullptr;
  take_constant_bytes(array.size * sizeof(T));
  AlignedBuffer buffer(array.size * sizeof(T));
  std::memcpy(buffer.data(), array.data, buffer.size());
  constants_.push_back(std::move(buffer));
  return reinterpret_cast<const T*>(constants_.back().data());
}

template <class Cpu, class Params>
const void* Program::pack(const Cpu& cpu, const Params& params) {
  const size_t bytes = cpu.packed_bytes(params);
  if (bytes == 0) return nullptr;
  take_constant_bytes(bytes);
  AlignedBuffer buffer(bytes);
  cpu.pack(params, buffer.data());
  constants_.push_back(std::move(buffer));
  return constants_.back().data();
}

// Called when everything else has been checked, before memory is taken.
Program::Step Program::new_step(const std::string& name, std::vector<int> reads, std::vector<int> writes) const {
  if (finalized_) fail(name, "the program is finalized: nothing can be added");
  if (steps_.size() + 1 >= kMaxTeamCalls) fail(name, "the program has too many steps");
  for (const int value : writes) {
    if (std::count(writes.begin(), writes.end(), value) > 1) fail(name, "value " + number(value) + " is written twice");
    if (std::count(reads.begin(), reads.end(), value) > 0) fail(name, "value " + number(value) + " is read and written");
  }
  Step step;
  step.name = name;
  step.reads = std::move(reads);
  step.writes = std::move(writes);
  return step;
}

void Program::add_kscaled_linear(const KScaledLinearSpec& s) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_dimension(s.name, "tokens", s.tokens);
  check_dimension(s.name, "in_features", s.in_features);
  check_dimension(s.name, "out_features", s.out_features);
  if (s.in_features > kMaxInFeatures) {
    fail(s.name, "in_features is " + number(s.in_features) + ", at most " + number(kMaxInFeatures) + " keep the sum inside int32");
  }
  check_columns(s.name, "x", s.x_width, s.x_offset, s.in_features);
  check_value(s.name, "x", s.x, product(s.name, {s.tokens, s.x_width}));
  check_value(s.name, "y", s.y, product(s.name, {s.tokens, s.out_features, s.float_output ? 4 : 1}));
  check_size(s.name, "weight", s.weight, {s.out_features, s.in_features});
  check_floats(s.name, "token_scale", s.token_scale, {s.tokens});
  check_floats(s.name, "channel_scale", s.channel_scale, {s.out_features});
  check_floats(s.name, "bias", s.bias, {s.out_features});
  check_floats(s.name, "out_token_scale", s.out_token_scale, {s.tokens});
  const bool has_table = s.table.size > 0 || s.table_id.size > 0;
  if (has_table && s.float_output) fail(s.name, "a table needs the int8 output");
  if (has_table) check_tables(s.name, s.table, s.table_id, s.out_features, -1);

  Step step = new_step(s.name, {s.x}, {s.y});
  const KScaledLinearCpu& cpu = kscaled_linear_cpu(isa_);
  KScaledLinearParams params;
  params.tokens = static_cast<int32_t>(s.tokens);
  params.in_features = static_cast<int32_t>(s.in_features);
  params.out_features = static_cast<int32_t>(s.out_features);
  params.x_stride = s.x_width;
  params.token_scale = keep(s.token_scale);
  params.channel_scale = keep(s.channel_scale);
  params.bias = keep(s.bias);
  params.out_token_scale = keep(s.out_token_scale);
  params.table = keep(s.table);
  params.table_id = keep(s.table_id);
  params.weight = s.weight.data;
  const void* packed = pack(cpu, params);
  params.weight = packed != nullptr ? nullptr : keep(s.weight);

  step.scratch_bytes = [cpu, params](int64_t batch, int threads) {
    KScaledLinearParams p = params;
    p.rows = batch * p.tokens;
    return cpu.scratch_bytes(p, threads);
  };
  step.run = [cpu, params, packed, x = s.x, y = s.y, offset = s.x_offset, to_float = s.float_output](int64_t batch, uint8_t* const* values,
                                                                                                     void* scratch, int threads) {
    KScaledLinearParams p = params;
    p.rows = batch * p.tokens;
    p.x = as_int8(values[x]) + offset;
    if (to_float) {
      p.y_float = as_float(values[y]);
    } else {
      p.y_int8 = as_int8(values[y]);
    }
    cpu.run(p, packed, scratch, threads);
  };
  steps_.push_back(std::move(step));
}

void Program::add_quant_conv1d_silu(const QuantConv1dSiluSpec& s) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_dimension(s.name, "tokens", s.tokens);
  check_dimension(s.name, "channels", s.channels);
  check_columns(s.name, "x", s.x_width, s.x_offset, s.channels);
  check_value(s.name, "x", s.x, product(s.name, {s.tokens, s.x_width}));
  check_value(s.name, "u_forward", s.u[0], product(s.name, {s.tokens, s.channels}));
  check_value(s.name, "u_backward", s.u[1], product(s.name, {s.tokens, s.channels}));
  check_size(s.name, "weight", s.weight, {2, s.channels, 4});
  check_floats(s.name, "channel_scale", s.channel_scale, {2, s.channels});
  check_floats(s.name, "bias", s.bias, {2, s.channels});
  check_tables(s.name, s.table, s.table_id, 2 * s.channels, 0);

  Step step = new_step(s.name, {s.x}, {s.u[0], s.u[1]});
  const QuantConv1dSiluCpu& cpu = quant_conv1d_silu_cpu(isa_);
  QuantConv1dSiluParams params;
  params.tokens = static_cast<int32_t>(s.tokens);
  params.channels = static_cast<int32_t>(s.channels);
  params.x_stride = s.x_width;
  params.weight = keep(s.weight);
  params.channel_scale = keep(s.channel_scale);
  params.bias = keep(s.bias);
  params.table = keep(s.table);
  params.table_id = keep(s.table_id);
  const void* packed = pack(cpu, params);

  step.scratch_bytes = [cpu, params](int64_t batch, int threads) {
    QuantConv1dSiluParams p = params;
    p.batch = batch;
    return cpu.scratch_bytes(p, threads);
  };
  step.run = [cpu, params, packed, x = s.x, u0 = s.u[0], u1 = s.u[1], offset = s.x_offset](int64_t batch, uint8_t* const* values,
                                                                                           void* scratch, int threads) {
    QuantConv1dSiluParams p = params;
    p.batch = batch;
    p.x = as_int8(values[x]) + offset;
    p.u[0] = as_int8(values[u0]);
    p.u[1] = as_int8(values[u1]);
    cpu.run(p, packed, scratch, threads);
  };
  steps_.push_back(std::move(step));
}

void Program::add_bidirectional_scan(const BidirectionalScanSpec& s) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_dimension(s.name, "tokens", s.tokens);
  check_dimension(s.name, "channels", s.channels);
  check_dimension(s.name, "channels times states", product(s.name, {2, s.channels, s.states}));
  if (s.states != 8 && s.states != 16) fail(s.name, "the state size is " + number(s.states) + ", expected 8 or 16");
  check_columns(s.name, "bc", s.bc_width, s.bc_offset, 2 * s.states);
  check_columns(s.name, "gate", s.gate_width, s.gate_offset, s.channels);
  const int64_t bytes = product(s.name, {s.tokens, s.channels});
  const int64_t bc_bytes = product(s.name, {s.tokens, s.bc_width});
  check_value(s.name, "u_forward", s.u[0], bytes);
  check_value(s.name, "u_backward", s.u[1], bytes);
  check_value(s.name, "delta_forward", s.delta[0], bytes);
  check_value(s.name, "delta_backward", s.delta[1], bytes);
  check_value(s.name, "bc_forward", s.bc[0], bc_bytes);
  check_value(s.name, "bc_backward", s.bc[1], bc_bytes);
  check_value(s.name, "gate", s.gate, product(s.name, {s.tokens, s.gate_width}));
  check_value(s.name, "y", s.y, bytes);
  check_floats(s.name, "a_log2", s.a_log2, {2, s.channels, s.states});
  check_floats(s.name, "decay_tok", s.decay_tok, {2, s.tokens});
  check_floats(s.name, "input_scale", s.input_scale, {2, s.channels});
  check_floats(s.name, "b_scale_state", s.b_scale_state, {2, s.states});
  check_floats(s.name, "b_scale_tok", s.b_scale_tok, {2, s.tokens});
  check_floats(s.name, "c_scale_state", s.c_scale_state, {2, s.states});
  check_floats(s.name, "c_scale_tok", s.c_scale_tok, {2, s.tokens});
  check_floats(s.name, "y_scale", s.y_scale, {2, s.channels});
  check_floats(s.name, "skip_scale", s.skip_scale, {2, s.channels});
  check_floats(s.name, "gate_scale", s.gate_scale, {s.channels});
  check_floats(s.name, "out_inv_scale_tok", s.out_inv_scale_tok, {s.tokens});

  Step step = new_step(s.name, {s.u[0], s.u[1], s.delta[0], s.delta[1], s.bc[0], s.bc[1], s.gate}, {s.y});
  const BidirectionalScanCpu& cpu = bidirectional_scan_cpu(isa_);
  BidirectionalScanParams params;
  params.tokens = static_cast<int32_t>(s.tokens);
  params.channels = static_cast<int32_t>(s.channels);
  params.states = static_cast<int32_t>(s.states);
  params.state_int8 = s.state_int8;
  params.bc_stride = s.bc_width;
  params.gate_stride = s.gate_width;
  params.a_log2 = keep(s.a_log2);
  params.decay_tok = keep(s.decay_tok);
  params.input_scale = keep(s.input_scale);
  params.b_scale_state = keep(s.b_scale_state);
  params.b_scale_tok = keep(s.b_scale_tok);
  params.c_scale_state = keep(s.c_scale_state);
  params.c_scale_tok = keep(s.c_scale_tok);
  params.y_scale = keep(s.y_scale);
  params.skip_scale = keep(s.skip_scale);
  params.gate_scale = keep(s.gate_scale);
  params.out_inv_scale_tok = keep(s.out_inv_scale_tok);
  const void* packed = pack(cpu, params);

  struct Ids {
    int u[2], delta[2], bc[2], gate, y;
    int64_t bc_offset, gate_offset;
  };
  const Ids ids = {{s.u[0], s.u[1]}, {s.delta[0], s.delta[1]}, {s.bc[0], s.bc[1]}, s.gate, s.y, s.bc_offset, s.gate_offset};
  step.scratch_bytes = [cpu, params](int64_t batch, int threads) {
    BidirectionalScanParams p = params;
    p.batch = batch;
    return cpu.scratch_bytes(p, threads);
  };
  step.run = [cpu, params, packed, ids](int64_t batch, uint8_t* const* values, void* scratch, int threads) {
    BidirectionalScanParams p = params;
    p.batch = batch;
    for (int d = 0; d < 2; ++d) {
      p.u[d] = as_int8(values[ids.u[d]]);
      p.delta[d] = as_int8(values[ids.delta[d]]);
      p.bc[d] = as_int8(values[ids.bc[d]]) + ids.bc_offset;
    }
    p.gate = as_int8(values[ids.gate]) + ids.gate_offset;
    p.y = as_int8(values[ids.y]);
    cpu.run(p, packed, scratch, threads);
  };
  steps_.push_back(std::move(step));
}

void Program::add_add_rms_norm_quant(const AddRmsNormQuantSpec& s) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_dimension(s.name, "tokens", s.tokens);
  check_dimension(s.name, "features", s.features);
  const int64_t bytes = product(s.name, {s.tokens, s.features, 4});
  check_value(s.name, "hidden", s.hidden, bytes);
  const bool is_shared = s.residual < 0;
  if (is_shared && s.residual_constant.data == nullptr) fail(s.name, "neither residual nor residual_constant is given");
  if (!is_shared && s.residual_constant.data != nullptr) fail(s.name, "both residual and residual_constant are given");
  if (is_shared) {
    check_floats(s.name, "residual_constant", s.residual_constant, {s.tokens, s.features});
  } else {
    check_value(s.name, "residual", s.residual, bytes);
  }
  check_value(s.name, "residual_out", s.residual_out, bytes);
  check_value(s.name, "y", s.y, bytes / 4);
  check_floats(s.name, "gain", s.gain, {s.features});
  check_floats(s.name, "inv_scale_tok", s.inv_scale_tok, {s.tokens});
  if (!std::isfinite(s.epsilon) || s.epsilon <= 0.0f) fail(s.name, "epsilon must be positive and finite");

  Step step = new_step(s.name, is_shared ? std::vector<int>{s.hidden} : std::vector<int>{s.hidden, s.residual}, {s.residual_out, s.y});
  const AddRmsNormQuantCpu& cpu = add_rms_norm_quant_cpu(isa_);
  AddRmsNormQuantParams params;
  params.tokens = static_cast<int32_t>(s.tokens);
  params.features = static_cast<int32_t>(s.features);
  params.residual_is_shared = is_shared;
  params.epsilon = s.epsilon;
  params.gain = keep(s.gain);
  params.inv_scale_tok = keep(s.inv_scale_tok);
  if (is_shared) params.residual = keep(s.residual_constant);
  const void* packed = pack(cpu, params);

  step.scratch_bytes = [cpu, params](int64_t batch, int threads) {
    AddRmsNormQuantParams p = params;
    p.rows = batch * p.tokens;
    return cpu.scratch_bytes(p, threads);
  };
  step.run = [cpu, params, packed, hidden = s.hidden, residual = s.residual, residual_out = s.residual_out, y = s.y](
                 int64_t batch, uint8_t* const* values, void* scratch, int threads) {
    AddRmsNormQuantParams p = params;
    p.rows = batch * p.tokens;
    p.hidden = as_float(values[hidden]);
    if (residual >= 0) p.residual = as_float(values[residual]);
    p.residual_out = as_float(values[residual_out]);
    p.y = as_int8(values[y]);
    cpu.run(p, packed, scratch, threads);
  };
  steps_.push_back(std::move(step));
}

void Program::add_copy(const CopySpec& s) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_dimension(s.name, "element_bytes", s.element_bytes);
  if (s.shape.size() != s.src_strides.size()) {
    fail(s.name, "shape has " + std::to_string(s.shape.size()) + " dimensions, src_strides " + std::to_string(s.src_strides.size()));
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
    fail(s.name, "the copy would read elements " + number(first) + " to " + number(last) + " of value " + number(s.x) + ", which has " +
                     number(src_bytes / s.element_bytes));
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
      fail(s.name, "indices holds " + number(index) + " at " + number(i) + ", expected 0 to " + number(s.axis_length - 1));
    }
  }

  Step step = new_step(s.name, {s.x}, {s.y});
  step.run = [x = s.x, y = s.y, outer = s.outer, axis_length = s.axis_length, inner_bytes = s.inner_bytes, indices = keep(s.indices),
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
      if (!written[static_cast<size_t>(value)]) fail(step.name, "reads value " + number(value) + " before it is written");
    }
    for (const int value : step.writes) {
      if (written[static_cast<size_t>(value)]) fail(step.name, "writes value " + number(value) + ", which is written already or an input");
      written[static_cast<size_t>(value)] = true;
    }
  }
  for (const int value : outputs) {
    value_bytes(value);
    if (is_input[static_cast<size_t>(value)]) fail("", "output value " + number(value) + " is an input: copy it");
    if (!written[static_cast<size_t>(value)]) fail("", "output value " + number(value) + " is never written");
    if (std::count(outputs.begin(), outputs.end(), value) > 1) fail("", "value " + number(value) + " is an output twice");
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
  lives.erase(std::remove_if(lives.begin(), lives.end(),
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
    const auto place =
        std::upper_bound(placed.begin(), placed.end(), offset, [&](int64_t at, const Life& other) { return at < offset_of(other); });
    placed.insert(place, life);
  }
  if (arena_bytes_ > kMaxArenaBytes)
    fail("", "the activations of one image take " + number(arena_bytes_) + " bytes, at most " + number(kMaxArenaBytes));
}

void Program::run(int64_t batch, const std::vector<const void*>& inputs, const std::vector<void*>& outputs, std::vector<double>* seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!finalized_) fail("", "the program is not finalized");
  if (batch < 1) fail("", "batch is " + number(batch) + ", expected at least 1");
  if (inputs.size() != inputs_.size() || outputs.size() != outputs_.size()) {
    fail("", "got " + std::to_string(inputs.size()) + " inputs and " + std::to_string(outputs.size()) + " outputs, expected " +
                 std::to_string(inputs_.size()) + " and " + std::to_string(outputs_.size()));
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
  for (size_t v = 0; v < pointers.size(); ++v) pointers[v] = arena_offset_[v] < 0 ? nullptr : arena_.data() + arena_offset_[v] * batch;
  // Inputs are only ever read: finalize has refused steps that write them.
  for (size_t i = 0; i < inputs.size(); ++i) {
    pointers[static_cast<size_t>(inputs_[i])] = static_cast<uint8_t*>(const_cast<void*>(inputs[i]));
  }
  for (size_t i = 0; i < outputs.size(); ++i) pointers[static_cast<size_t>(outputs_[i])] = static_cast<uint8_t*>(outputs[i]);
  if (seconds != nullptr) seconds->assign(steps_.size(), 0.0);
  run_steps(batch, std::move(pointers), seconds);
}

void Program::run_steps(int64_t batch, std::vector<uint8_t*> pointers, std::vector<double>* seconds) {
  const int threads = threads_;
  // A helper may still be on its way through steps that are done when this function has returned, and touches nothing but what it holds
  // itself and the program.
  const auto team = threads > 1 ? std::make_shared<Team>(threads) : nullptr;
  const auto run_all = [this, batch, threads, team, scratch = scratch_.data(), values = std::move(pointers), seconds](int worker) {
    std::optional<TeamMember> member;
    if (team != nullptr) member.emplace(*team, worker, threads);
    for (size_t i = 0; i < steps_.size(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      steps_[i].run(batch, values.data(), scratch, threads);
      if (worker == 0 && seconds != nullptr)
        (*seconds)[i] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
  };
  helpers_.run(threads, std::make_shared<const Helpers::Work>(run_all));
}

std::vector<std::string> Program::step_names() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> names;
  for (const Step& step : steps_) names.push_back(step.name);
  return names;
}

}  // namespace vimtrt
