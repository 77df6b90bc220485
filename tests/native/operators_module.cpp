// The CUDA kernels for Python, on the CPU double (vimtrt_cuda_on_cpu) or on a GPU (vimtrt_cuda_on_gpu); see tests/kernel_run.py. An
// operator's function takes what its node in the network takes, by the same names, and returns its outputs. Every input lies in protected
// device memory of its own and every output in poisoned memory of its own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "plugins/add_rms_norm_quant/kernel.h"
#include "plugins/bidirectional_scan/kernel.h"
#include "plugins/kscaled_linear/kernel.h"
#include "plugins/quant_conv1d_silu/kernel.h"
#include "tests/native/device.h"
#include "tests/native/probes.h"
#include "tests/native/python_device.h"
#ifdef VIMTRT_CUDA_ON_CPU
#include "plugins/cuda_on_cpu/planted.h"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace vimtrt {
namespace {

using test::Settings;

template <class T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
using Int8s = Array<int8_t>;
using Int32s = Array<int32_t>;
using Floats = Array<float>;

// Device memory of elements.
template <class T>
class Device {
 public:
  Device(const Settings& settings, size_t count, const char* name) : count_(count), memory_(settings, count * sizeof(T), sizeof(T), name) {}

  T* data() const { return static_cast<T*>(memory_.data()); }
  void protect() { memory_.protect(); }

  void fill(const Array<T>& source) {
    if (source.size() != count_) throw std::invalid_argument("sizes differ");
    memory_.write(source.data());
  }

  nb::object copy(std::vector<size_t> shape) const {
    T* memory = new T[std::max<size_t>(count_, 1)];
    const nb::capsule owner(memory, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    memory_.read(memory);
    return nb::cast(nb::ndarray<nb::numpy, T>(memory, shape.size(), shape.data(), owner));
  }

 private:
  size_t count_;
  test::Memory memory_;
};

// An input: a kernel may not write to it.
template <class T>
class Input {
 public:
  Input(const Settings& settings, const char* name, const Array<T>& source, bool is_written = false)
      : memory_(settings, source.size(), name) {
    memory_.fill(source);
    if (!is_written) memory_.protect();
  }
  const T* data() const { return memory_.data(); }
  T* writable() const { return memory_.data(); }
  nb::object copy(std::vector<size_t> shape) const { return memory_.copy(std::move(shape)); }

 private:
  Device<T> memory_;
};

// Starts a kernel and waits for it; raises KernelError where it failed.
template <class Launch>
void run(const Launch& launch) {
  static test::Stream stream;
  int status = 0;
  stream.run([&](cuda::Stream handle) {
    status = launch(handle);
    return 0;
  });
  test::finish(status);
}

void expect_rank(size_t got, size_t expected) {
  if (got != expected) throw std::invalid_argument("an array has rank " + std::to_string(got) + ", expected " + std::to_string(expected));
}

std::vector<size_t> sizes(size_t a, size_t b, size_t c) { return {a, b, c}; }

const std::map<std::string, KScaledLinearTile> kTiles = {{"small", KScaledLinearTile::kSmall},
                                                         {"flat", KScaledLinearTile::kFlat},
                                                         {"medium", KScaledLinearTile::kMedium},
                                                         {"large", KScaledLinearTile::kLarge}};

// `tile`: one of kTiles, or empty for the one that the launch chooses.
nb::tuple kscaled_linear(const Settings& s, const Int8s& x, const Int8s& weight, const Floats& token_scale, const Floats& channel_scale,
                         const Floats& bias, const Floats& out_token_scale, const std::optional<Int8s>& table,
                         const std::optional<Int32s>& table_id, int64_t x_offset, const std::string& out_type, const std::string& tile) {
  expect_rank(x.ndim(), 3);
  expect_rank(weight.ndim(), 2);
  test::begin(s);
  const bool to_float = out_type == "float32";
  const Input<int8_t> x_on(s, "x", x), weight_on(s, "weight", weight);
  const Input<float> token_scale_on(s, "token_scale", token_scale), channel_scale_on(s, "channel_scale", channel_scale),
      bias_on(s, "bias", bias), out_token_scale_on(s, "out_token_scale", out_token_scale);
  std::optional<Input<int8_t>> table_on;
  std::optional<Input<int32_t>> table_id_on;
  if (table) table_on.emplace(s, "table", *table);
  if (table_id) table_id_on.emplace(s, "table_id", *table_id);
  const size_t rows = x.shape(0) * x.shape(1), features = weight.shape(0);
  const Device<float> y_float(s, to_float ? rows * features : 0, "y");
  const Device<int8_t> y_int8(s, to_float ? 0 : rows * features, "y");

  KScaledLinearParams p;
  p.rows = static_cast<int64_t>(rows);
  p.tokens = static_cast<int32_t>(x.shape(1));
  p.in_features = static_cast<int32_t>(weight.shape(1));
  p.out_features = static_cast<int32_t>(features);
  p.x_stride = static_cast<int64_t>(x.shape(2));
  p.x = x_on.data() + x_offset;
  p.weight = weight_on.data();
  p.token_scale = token_scale_on.data();
  p.channel_scale = channel_scale_on.data();
  p.bias = bias_on.data();
  p.out_token_scale = out_token_scale_on.data();
  if (table_on) p.table = table_on->data();
  if (table_id_on) p.table_id = table_id_on->data();
  if (to_float) {
    p.y_float = y_float.data();
  } else {
    p.y_int8 = y_int8.data();
  }
  run([&](cuda::Stream stream) {
    return tile.empty() ? kscaled_linear_launch(p, stream) : kscaled_linear_launch_tile(p, test::choose(kTiles, tile), stream);
  });
  const std::vector<size_t> shape = sizes(x.shape(0), x.shape(1), features);
  return nb::make_tuple(to_float ? y_float.copy(shape) : y_int8.copy(shape));
}

nb::tuple quant_conv1d_silu(const Settings& s, const Int8s& x, const Int8s& weight, const Floats& channel_scale, const Floats& bias,
                            const Int8s& table, const Int32s& table_id, int64_t x_offset) {
  expect_rank(x.ndim(), 3);
  expect_rank(weight.ndim(), 3);
  test::begin(s);
  const Input<int8_t> x_on(s, "x", x), weight_on(s, "weight", weight), table_on(s, "table", table);
  const Input<float> channel_scale_on(s, "channel_scale", channel_scale), bias_on(s, "bias", bias);
  const Input<int32_t> table_id_on(s, "table_id", table_id);
  const std::vector<size_t> shape = sizes(x.shape(0), x.shape(1), weight.shape(1));
  const size_t count = shape[0] * shape[1] * shape[2];
  const Device<int8_t> forward(s, count, "u_forward"), backward(s, count, "u_backward");

  QuantConv1dSiluParams p;
  p.batch = static_cast<int64_t>(x.shape(0));
  p.tokens = static_cast<int32_t>(x.shape(1));
  p.channels = static_cast<int32_t>(weight.shape(1));
  p.x_stride = static_cast<int64_t>(x.shape(2));
  p.x = x_on.data() + x_offset;
  p.weight = weight_on.data();
  p.channel_scale = channel_scale_on.data();
  p.bias = bias_on.data();
  p.table = table_on.data();
  p.table_id = table_id_on.data();
  p.u[0] = forward.data();
  p.u[1] = backward.data();
  run([&](cuda::Stream stream) { return quant_conv1d_silu_launch(p, stream); });
  return nb::make_tuple(forward.copy(shape), backward.copy(shape));
}

// `with_workspace`: false leaves the workspace out, which the launch must notice where it needs one.
nb::tuple bidirectional_scan(const Settings& s, const Int8s& u_forward, const Int8s& u_backward, const Int8s& delta_forward,
                             const Int8s& delta_backward, const Int8s& bc_forward, const Int8s& bc_backward, const Int8s& gate,
                             const Floats& a_log2, const Floats& decay_tok, const Floats& input_scale, const Floats& b_scale_state,
                             const Floats& b_scale_tok, const Floats& c_scale_state, const Floats& c_scale_tok, const Floats& y_scale,
                             const Floats& skip_scale, const Floats& gate_scale, const Floats& out_inv_scale_tok, int64_t bc_offset,
                             int64_t gate_offset, const std::string& state, bool with_workspace) {
  for (const Int8s* each : {&u_forward, &u_backward, &delta_forward, &delta_backward, &bc_forward, &bc_backward, &gate}) {
    expect_rank(each->ndim(), 3);
  }
  expect_rank(a_log2.ndim(), 3);
  test::begin(s);
  const Input<int8_t> u0(s, "u_forward", u_forward), u1(s, "u_backward", u_backward), delta0(s, "delta_forward", delta_forward),
      delta1(s, "delta_backward", delta_backward), bc0(s, "bc_forward", bc_forward), bc1(s, "bc_backward", bc_backward),
      gate_on(s, "gate", gate);
  const Input<float> a_log2_on(s, "a_log2", a_log2), decay_tok_on(s, "decay_tok", decay_tok), input_scale_on(s, "input_scale", input_scale),
      b_scale_state_on(s, "b_scale_state", b_scale_state), b_scale_tok_on(s, "b_scale_tok", b_scale_tok),
      c_scale_state_on(s, "c_scale_state", c_scale_state), c_scale_tok_on(s, "c_scale_tok", c_scale_tok), y_scale_on(s, "y_scale", y_scale),
      skip_scale_on(s, "skip_scale", skip_scale), gate_scale_on(s, "gate_scale", gate_scale),
      out_inv_scale_tok_on(s, "out_inv_scale_tok", out_inv_scale_tok);
  const std::vector<size_t> shape = sizes(u_forward.shape(0), u_forward.shape(1), u_forward.shape(2));
  const Device<int8_t> y(s, shape[0] * shape[1] * shape[2], "y");

  BidirectionalScanParams p;
  p.batch = static_cast<int64_t>(shape[0]);
  p.tokens = static_cast<int32_t>(shape[1]);
  p.channels = static_cast<int32_t>(shape[2]);
  p.states = static_cast<int32_t>(a_log2.shape(2));
  p.state_int8 = state == "int8";
  p.bc_stride = static_cast<int64_t>(bc_forward.shape(2));
  p.gate_stride = static_cast<int64_t>(gate.shape(2));
  p.u[0] = u0.data();
  p.u[1] = u1.data();
  p.delta[0] = delta0.data();
  p.delta[1] = delta1.data();
  p.bc[0] = bc0.data() + bc_offset;
  p.bc[1] = bc1.data() + bc_offset;
  p.gate = gate_on.data() + gate_offset;
  p.a_log2 = a_log2_on.data();
  p.decay_tok = decay_tok_on.data();
  p.input_scale = input_scale_on.data();
  p.b_scale_state = b_scale_state_on.data();
  p.b_scale_tok = b_scale_tok_on.data();
  p.c_scale_state = c_scale_state_on.data();
  p.c_scale_tok = c_scale_tok_on.data();
  p.y_scale = y_scale_on.data();
  p.skip_scale = skip_scale_on.data();
  p.gate_scale = gate_scale_on.data();
  p.out_inv_scale_tok = out_inv_scale_tok_on.data();
  p.y = y.data();
  const Device<float> workspace(s, bidirectional_scan_workspace_bytes(p) / sizeof(float), "workspace");
  run([&](cuda::Stream stream) { return bidirectional_scan_launch(p, stream, with_workspace ? workspace.data() : nullptr); });
  return nb::make_tuple(y.copy(shape));
}

// The tile that a launch takes on a GPU of so many processors.
std::string kscaled_linear_tile_of(int64_t rows, int32_t out_features, int32_t in_features, bool to_float, int processors) {
  KScaledLinearParams p;
  p.rows = rows;
  p.out_features = out_features;
  p.in_features = in_features;
  float unused = 0;
  if (to_float) p.y_float = &unused;
  const KScaledLinearTile tile = kscaled_linear_tile(p, processors);
  return std::find_if(kTiles.begin(), kTiles.end(), [&](const auto& each) { return each.second == tile; })->first;
}

size_t scan_workspace_bytes(int64_t batch, int32_t tokens, int32_t channels, int32_t states) {
  BidirectionalScanParams p;
  p.batch = batch;
  p.tokens = tokens;
  p.channels = channels;
  p.states = states;
  return bidirectional_scan_workspace_bytes(p);
}

// `in_place`: residual_out is the memory of "residual" or "hidden", or of its own.
nb::tuple add_rms_norm_quant(const Settings& s, const Floats& hidden, const Floats& residual, const Floats& gain,
                             const Floats& inv_scale_tok, float epsilon, const std::string& in_place) {
  expect_rank(hidden.ndim(), 3);
  expect_rank(residual.ndim(), 3);
  test::begin(s);
  const std::vector<size_t> shape = sizes(hidden.shape(0), hidden.shape(1), hidden.shape(2));
  const size_t count = shape[0] * shape[1] * shape[2];
  const Input<float> hidden_on(s, "hidden", hidden, in_place == "hidden"), residual_on(s, "residual", residual, in_place == "residual"),
      gain_on(s, "gain", gain), inv_scale_tok_on(s, "inv_scale_tok", inv_scale_tok);
  const Device<float> residual_out(s, in_place.empty() ? count : 0, "residual_out");
  const Device<int8_t> y(s, count, "y");

  AddRmsNormQuantParams p;
  p.rows = static_cast<int64_t>(shape[0] * shape[1]);
  p.tokens = static_cast<int32_t>(shape[1]);
  p.features = static_cast<int32_t>(shape[2]);
  p.residual_is_shared = residual.shape(0) == 1;
  p.epsilon = epsilon;
  p.hidden = hidden_on.data();
  p.residual = residual_on.data();
  p.gain = gain_on.data();
  p.inv_scale_tok = inv_scale_tok_on.data();
  p.residual_out = in_place == "hidden" ? hidden_on.writable() : in_place == "residual" ? residual_on.writable() : residual_out.data();
  p.y = y.data();
  run([&](cuda::Stream stream) { return add_rms_norm_quant_launch(p, stream); });
  const nb::object out = in_place == "hidden"     ? hidden_on.copy(shape)
                         : in_place == "residual" ? residual_on.copy(shape)
                                                  : residual_out.copy(shape);
  return nb::make_tuple(out, y.copy(shape));
}

// Probes

nb::object multiply(const Settings& s, const Int8s& a, const Int8s& b, const Int32s& c, bool with_ldmatrix) {
  test::begin(s);
  const Input<int8_t> a_on(s, "a", a), b_on(s, "b", b);
  const Input<int32_t> d(s, "d", c, true);
  run([&](cuda::Stream stream) { return probes::multiply(a_on.data(), b_on.data(), d.writable(), with_ldmatrix, stream); });
  return d.copy({16, 8});
}

using Probe = int (*)(const int32_t* a, const int32_t* b, const int32_t* c, int32_t* d, cuda::Stream stream);

template <Probe probe>
nb::object of_words(const Settings& s, const Int32s& a, const Int32s& b, const Int32s& c) {
  test::begin(s);
  const Input<int32_t> a_on(s, "a", a), b_on(s, "b", b), c_on(s, "c", c);
  const Device<int32_t> d(s, 32, "d");
  run([&](cuda::Stream stream) { return probe(a_on.data(), b_on.data(), c_on.data(), d.data(), stream); });
  return d.copy({32});
}

template <class T>
nb::tuple shuffle(const Settings& s, const Array<T>& x) {
  test::begin(s);
  const Input<T> x_on(s, "x", x);
  const Device<T> xored(s, 32 * 32, "xored"), sent(s, 32 * 32, "sent");
  run([&](cuda::Stream stream) { return probes::shuffle(x_on.data(), xored.data(), sent.data(), stream); });
  return nb::make_tuple(xored.copy({32, 32}), sent.copy({32, 32}));
}

nb::object scale(const Settings& s, const Floats& x, float factor) {
  test::begin(s);
  const Input<float> x_on(s, "x", x);
  const Device<float> y(s, x.size(), "y");
  run([&](cuda::Stream stream) { return probes::scale(x_on.data(), factor, y.data(), static_cast<int>(x.size()), stream); });
  return y.copy({x.size()});
}

// The status of the launch, and what the double says of it.
std::pair<int, std::string> launch_nothing(unsigned x, unsigned y, unsigned z, unsigned threads, size_t shared_bytes) {
  test::begin({});
  int status = 0;
  run([&](cuda::Stream stream) {
    status = probes::launch_nothing(x, y, z, threads, shared_bytes, stream);
    return 0;
  });
  return {status, test::last_error()};
}

#ifdef VIMTRT_CUDA_ON_CPU
// Planted faults: of the double alone, on a GPU they may do anything.
nb::object run_fault(const Settings& s, const std::string& name, bool corrected, const Floats& x) {
  test::begin(s);
  const Input<float> x_on(s, "x", x);
  const Device<float> y(s, planted::kElements, "y");
  run([&](cuda::Stream stream) { return planted::run_fault(name, corrected, x_on.data(), y.data(), stream); });
  return y.copy({planted::kElements});
}
#endif

}  // namespace

NB_MODULE(VIMTRT_MODULE, m) {
  test::bind_device(m);
  m.def("kscaled_linear", kscaled_linear, "settings"_a, "x"_a, "weight"_a, "token_scale"_a, "channel_scale"_a, "bias"_a,
        "out_token_scale"_a, "table"_a = nb::none(), "table_id"_a = nb::none(), "x_offset"_a = 0, "out_type"_a = "int8", "tile"_a = "");
  m.def("kscaled_linear_tile", kscaled_linear_tile_of, "rows"_a, "out_features"_a, "in_features"_a, "to_float"_a, "processors"_a);
  m.def("quant_conv1d_silu", quant_conv1d_silu, "settings"_a, "x"_a, "weight"_a, "channel_scale"_a, "bias"_a, "table"_a, "table_id"_a,
        "x_offset"_a = 0);
  m.def("bidirectional_scan", bidirectional_scan, "settings"_a, "u_forward"_a, "u_backward"_a, "delta_forward"_a, "delta_backward"_a,
        "bc_forward"_a, "bc_backward"_a, "gate"_a, "a_log2"_a, "decay_tok"_a, "input_scale"_a, "b_scale_state"_a, "b_scale_tok"_a,
        "c_scale_state"_a, "c_scale_tok"_a, "y_scale"_a, "skip_scale"_a, "gate_scale"_a, "out_inv_scale_tok"_a, "bc_offset"_a = 0,
        "gate_offset"_a = 0, "state"_a = "int8", "with_workspace"_a = true);
  m.def("bidirectional_scan_workspace_bytes", scan_workspace_bytes, "batch"_a, "tokens"_a, "channels"_a, "states"_a);
  m.def("add_rms_norm_quant", add_rms_norm_quant, "settings"_a, "hidden"_a, "residual"_a, "gain"_a, "inv_scale_tok"_a, "epsilon"_a = 1e-5f,
        "in_place"_a = "");
  m.def("multiply", multiply, "settings"_a, "a"_a, "b"_a, "c"_a, "with_ldmatrix"_a);
  m.def("dp4a", of_words<probes::dp4a>, "settings"_a, "a"_a, "b"_a, "c"_a);
  m.def("byte_permute", of_words<probes::byte_permute>, "settings"_a, "a"_a, "b"_a, "selector"_a);
  m.def("shuffle", shuffle<float>, "settings"_a, "x"_a.noconvert());
  m.def("shuffle", shuffle<int64_t>, "settings"_a, "x"_a.noconvert());
  m.def("scale", scale, "settings"_a, "x"_a, "factor"_a);
  m.def("launch_nothing", launch_nothing, "x"_a, "y"_a, "z"_a, "threads"_a, "shared_bytes"_a);
#ifdef VIMTRT_CUDA_ON_CPU
  m.def("fault_names", planted::fault_names);
  m.def("run_fault", run_fault, "settings"_a, "name"_a, "corrected"_a, "x"_a);
#endif
}

}  // namespace vimtrt
