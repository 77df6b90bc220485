// How many instructions a CPU kernel executes on a small fixed case: count_instructions OPERATOR ISA prints the number.
//
// A child process runs the kernel and its parent takes it through step by step (ptrace), so the count is exact, holds
// for every instruction set that the machine has, and does not depend on what else the machine does. Steps that are not
// the kernel's, into and out of the stops, are counted with an empty run and taken away.
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "plugins/add_layer_norm_quant/cpu.h"
#include "plugins/add_rms_norm_quant/cpu.h"
#include "plugins/bidirectional_scan/cpu.h"
#include "plugins/common/isa.h"
#include "plugins/kscaled_linear/cpu.h"
#include "plugins/quant_conv1d_silu/cpu.h"

using namespace vimtrt;

namespace {

// Fills arrays with numbers that are the same everywhere, and keeps them.
class Data {
 public:
  int8_t* bytes(int64_t count) {
    int8_t* array = static_cast<int8_t*>(memory(count));
    for (int64_t i = 0; i < count; ++i) array[i] = static_cast<int8_t>(next() >> 24);
    return array;
  }
  float* floats(int64_t count, float low, float high) {
    float* array = static_cast<float*>(memory(count * 4));
    for (int64_t i = 0; i < count; ++i)
      array[i] = low + (high - low) * static_cast<float>(next() >> 8) * (1.0f / (1 << 24));
    return array;
  }
  int32_t* zeros(int64_t count) {
    return static_cast<int32_t*>(std::memset(memory(count * 4), 0, static_cast<size_t>(count) * 4));
  }
  void* memory(int64_t bytes) {
    void* block = std::aligned_alloc(64, static_cast<size_t>(bytes / 64 + 2) * 64);
    if (block == nullptr) throw std::runtime_error("out of memory");
    return block;
  }

 private:
  uint32_t next() { return state_ = state_ * 1664525u + 1013904223u; }
  uint32_t state_ = 1;
};

template <class Cpu, class Params>
std::function<void()> prepared(Data& data, const Cpu& cpu, const Params& params) {
  void* packed = data.memory(static_cast<int64_t>(cpu.packed_bytes(params)));
  cpu.pack(params, packed);
  void* scratch = data.memory(static_cast<int64_t>(cpu.scratch_bytes(params, 1)));
  return [=] { cpu.run(params, packed, scratch, 1); };
}

std::function<void()> linear(Data& data, Isa isa, bool to_float) {
  KScaledLinearParams p;
  p.rows = p.tokens = 15;
  p.in_features = 192;
  p.out_features = 128;
  p.x_stride = 200;
  p.x = data.bytes(p.rows * p.x_stride);
  p.weight = data.bytes(p.out_features * p.in_features);
  p.token_scale = data.floats(p.tokens, 0.5f, 1.0f);
  p.channel_scale = data.floats(p.out_features, 1e-5f, 1e-4f);
  p.bias = data.floats(p.out_features, -1.0f, 1.0f);
  p.out_token_scale = data.floats(p.tokens, 0.5f, 1.0f);
  if (to_float) {
    p.y_float = data.floats(p.rows * p.out_features, 0.0f, 0.0f);
  } else {
    p.table = data.bytes(256);
    p.table_id = data.zeros(p.out_features);
    p.y_int8 = data.bytes(p.rows * p.out_features);
  }
  return prepared(data, kscaled_linear_cpu(isa), p);
}

std::function<void()> conv(Data& data, Isa isa) {
  QuantConv1dSiluParams p;
  p.batch = 1;
  p.tokens = 16;
  p.channels = 128;
  p.x_stride = 256;
  p.x = data.bytes(p.tokens * p.x_stride);
  p.weight = data.bytes(2 * p.channels * 4);
  p.channel_scale = data.floats(2 * p.channels, 1e-3f, 1e-2f);
  p.bias = data.floats(2 * p.channels, -1.0f, 1.0f);
  p.table = data.bytes(256);
  p.table_id = data.zeros(2 * p.channels);
  for (int d = 0; d < 2; ++d) p.u[d] = data.bytes(p.tokens * p.channels);
  return prepared(data, quant_conv1d_silu_cpu(isa), p);
}

// As many tokens as make little of the tables, which are the same for any number.
std::function<void()> scan(Data& data, Isa isa, ScanState state) {
  BidirectionalScanParams p;
  p.batch = 1;
  p.tokens = 100;
  p.channels = 32;
  p.states = 16;
  p.state = state;
  p.bc_stride = 44;
  p.gate_stride = 64;
  const int64_t values = static_cast<int64_t>(p.tokens) * p.channels;
  for (int d = 0; d < 2; ++d) {
    p.u[d] = data.bytes(values);
    p.delta[d] = data.bytes(values);
    p.bc[d] = data.bytes(p.tokens * p.bc_stride);
  }
  p.gate = data.bytes(p.tokens * p.gate_stride);
  p.a_log2 = data.floats(2 * p.channels * p.states, -0.4f, 0.0f);
  p.decay_tok = data.floats(2 * p.tokens, 1.0f, 1.0f);
  p.input_scale = data.floats(2 * p.channels, 1e-5f, 1e-4f);
  p.b_scale_state = data.floats(2 * p.states, 0.5f, 1.0f);
  p.b_scale_tok = data.floats(2 * p.tokens, 0.5f, 1.0f);
  p.c_scale_state = data.floats(2 * p.states, 0.5f, 1.0f);
  p.c_scale_tok = data.floats(2 * p.tokens, 0.5f, 1.0f);
  p.y_scale = data.floats(2 * p.channels, 0.5f, 1.0f);
  p.skip_scale = data.floats(2 * p.channels, 0.5f, 1.0f);
  p.gate_scale = data.floats(p.channels, 0.5f, 1.0f);
  p.out_inv_scale_tok = data.floats(p.tokens, 0.5f, 1.0f);
  p.y = data.bytes(values);
  return prepared(data, bidirectional_scan_cpu(isa), p);
}

template <class Params>
Params norm_params(Data& data) {
  Params p;
  p.rows = p.tokens = 16;
  p.features = 192;
  p.epsilon = 1e-5f;
  p.hidden = data.floats(p.rows * p.features, -1.0f, 1.0f);
  p.residual = data.floats(p.rows * p.features, -1.0f, 1.0f);
  p.gain = data.floats(p.features, 0.5f, 1.0f);
  p.inv_scale_tok = data.floats(p.tokens, 10.0f, 20.0f);
  p.residual_out = data.floats(p.rows * p.features, 0.0f, 0.0f);
  p.y = data.bytes(p.rows * p.features);
  return p;
}

std::function<void()> norm(Data& data, Isa isa) {
  return prepared(data, add_rms_norm_quant_cpu(isa), norm_params<AddRmsNormQuantParams>(data));
}

std::function<void()> layer_norm(Data& data, Isa isa) {
  AddLayerNormQuantParams p = norm_params<AddLayerNormQuantParams>(data);
  p.shift = data.floats(p.features, -0.5f, 0.5f);
  return prepared(data, add_layer_norm_quant_cpu(isa), p);
}

// Instructions between the child's two stops.
long steps(const std::function<void()>& body) {
  cpu_set_t here;  // both on one processor: handing over is faster
  CPU_ZERO(&here);
  CPU_SET(sched_getcpu(), &here);
  sched_setaffinity(0, sizeof here, &here);
  const pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    body();
    raise(SIGSTOP);
    _exit(0);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
    throw std::runtime_error("the child did not stop");
  long count = 0;
  for (;; ++count) {
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0 || waitpid(child, &status, 0) != child)
      throw std::runtime_error("ptrace failed");
    if (!WIFSTOPPED(status)) throw std::runtime_error("the child ended in the middle");
    if (WSTOPSIG(status) == SIGSTOP) break;
    if (WSTOPSIG(status) != SIGTRAP)
      throw std::runtime_error("the child got signal " + std::to_string(WSTOPSIG(status)));
  }
  ptrace(PTRACE_KILL, child, nullptr, nullptr);
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return count;
}

std::function<void()> prepare(Data& data, const std::string& name, Isa isa) {
  if (name == "kscaled_linear") return linear(data, isa, false);
  if (name == "kscaled_linear_float") return linear(data, isa, true);
  if (name == "quant_conv1d_silu") return conv(data, isa);
  if (name == "bidirectional_scan_int8") return scan(data, isa, ScanState::kInt8);
  if (name == "bidirectional_scan_fp32") return scan(data, isa, ScanState::kFp32);
  if (name == "add_rms_norm_quant") return norm(data, isa);
  if (name == "add_layer_norm_quant") return layer_norm(data, isa);
  throw std::runtime_error("unknown operator " + name);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 2 && std::string(argv[1]) == "--isas") {
      for (const Isa isa : available_isas()) std::printf("%s\n", isa_name(isa));
      return 0;
    }
    if (argc != 3) throw std::runtime_error("usage: count_instructions OPERATOR ISA, or count_instructions --isas");
    Data data;
    const std::function<void()> body = prepare(data, argv[1], isa_from_name(argv[2]));
    body();  // what is bound or found at the first call is not the kernel's
    std::printf("%ld\n", steps(body) - steps([] {}));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  return 0;
}
