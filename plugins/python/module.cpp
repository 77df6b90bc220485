// pyvimtrt._native: the executor for Python. Arrays are checked here (type, shape, layout), everything else by Program itself; every
// complaint is a ValueError. The types are in pyvimtrt/_native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "plugins/common/isa.h"
#include "plugins/python/program.h"
#include "plugins/python/rates.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vimtrt {

void bind_scan_fp32(nb::module_& module);  // scan_fp32_module.cpp

namespace {

using AnyArray = nb::ndarray<nb::ro>;
constexpr int64_t kAny = -1;  // a dimension of any size

template <class T>
const char* type_name();
template <>
const char* type_name<int8_t>() {
  return "int8";
}
template <>
const char* type_name<int32_t>() {
  return "int32";
}
template <>
const char* type_name<int64_t>() {
  return "int64";
}
template <>
const char* type_name<float>() {
  return "float32";
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t d = 0; d < shape.size(); ++d)
    text += (d > 0 ? ", " : "") + (shape[d] == kAny ? std::string("any") : std::to_string(shape[d]));
  return text + "]";
}

// Arguments of one operator; remembers its name for the sentences.
class Reader {
 public:
  explicit Reader(std::string name) : name_(std::move(name)) {}

  template <class T>
  Array<T> array(const char* what, const AnyArray& source, std::initializer_list<int64_t> shape) const {
    if (source.device_type() != nb::device::cpu::value) fail(what, "must be in host memory");
    if (source.dtype() != nb::dtype<T>()) fail(what, std::string("must be an array of ") + type_name<T>());
    std::vector<int64_t> actual;
    for (size_t d = 0; d < source.ndim(); ++d) actual.push_back(static_cast<int64_t>(source.shape(d)));
    bool fits = actual.size() == shape.size();
    for (size_t d = 0; fits && d < actual.size(); ++d) fits = shape.begin()[d] == kAny || shape.begin()[d] == actual[d];
    if (!fits) fail(what, "has shape " + shape_text(actual) + ", expected " + shape_text(shape));
    int64_t stride = 1;
    for (size_t d = actual.size(); d-- > 0;) {
      if (actual[d] > 1 && source.stride(d) != stride) fail(what, "must be C-contiguous");
      stride *= actual[d];
    }
    if (reinterpret_cast<uintptr_t>(source.data()) % alignof(T) != 0) fail(what, "is not aligned");
    return {static_cast<const T*>(source.data()), source.size()};
  }

  template <class T>
  Array<T> optional_array(const char* what, const std::optional<AnyArray>& source, std::initializer_list<int64_t> shape) const {
    return source ? array<T>(what, *source, shape) : Array<T>{};
  }

  static int64_t dimension(const AnyArray& source, size_t d) { return d < source.ndim() ? static_cast<int64_t>(source.shape(d)) : kAny; }

  [[noreturn]] void fail(const char* what, const std::string& sentence) const {
    throw std::invalid_argument(name_ + ": " + what + " " + sentence);
  }

 private:
  std::string name_;
};

void add_kscaled_linear(Program& program, const std::string& name, int x, int y, int64_t tokens, int64_t x_width, int64_t x_offset,
                        const AnyArray& weight, const AnyArray& token_scale, const AnyArray& channel_scale, const AnyArray& bias,
                        const AnyArray& out_token_scale, const std::optional<AnyArray>& table, const std::optional<AnyArray>& table_id,
                        bool float_output) {
  const Reader read(name);
  if (table.has_value() != table_id.has_value()) read.fail("table", "and table_id come together");
  KScaledLinearSpec spec;
  spec.name = name;
  spec.x = x;
  spec.y = y;
  spec.tokens = tokens;
  spec.x_width = x_width;
  spec.x_offset = x_offset;
  spec.float_output = float_output;
  spec.weight = read.array<int8_t>("weight", weight, {kAny, kAny});
  spec.out_features = Reader::dimension(weight, 0);
  spec.in_features = Reader::dimension(weight, 1);
  spec.token_scale = read.array<float>("token_scale", token_scale, {tokens});
  spec.channel_scale = read.array<float>("channel_scale", channel_scale, {spec.out_features});
  spec.bias = read.array<float>("bias", bias, {spec.out_features});
  spec.out_token_scale = read.array<float>("out_token_scale", out_token_scale, {tokens});
  spec.table = read.optional_array<int8_t>("table", table, {kAny, 256});
  spec.table_id = read.optional_array<int32_t>("table_id", table_id, {spec.out_features});
  program.add_kscaled_linear(spec);
}

void add_quant_conv1d_silu(Program& program, const std::string& name, int x, int u_forward, int u_backward, int64_t tokens, int64_t x_width,
                           int64_t x_offset, const AnyArray& weight, const AnyArray& channel_scale, const AnyArray& bias,
                           const AnyArray& table, const AnyArray& table_id) {
  const Reader read(name);
  QuantConv1dSiluSpec spec;
  spec.name = name;
  spec.x = x;
  spec.u[0] = u_forward;
  spec.u[1] = u_backward;
  spec.tokens = tokens;
  spec.x_width = x_width;
  spec.x_offset = x_offset;
  spec.weight = read.array<int8_t>("weight", weight, {2, kAny, 4});
  spec.channels = Reader::dimension(weight, 1);
  spec.channel_scale = read.array<float>("channel_scale", channel_scale, {2, spec.channels});
  spec.bias = read.array<float>("bias", bias, {2, spec.channels});
  spec.table = read.array<int8_t>("table", table, {kAny, 256});
  spec.table_id = read.array<int32_t>("table_id", table_id, {2, spec.channels});
  program.add_quant_conv1d_silu(spec);
}

void add_bidirectional_scan(Program& program, const std::string& name, int u_forward, int u_backward, int delta_forward, int delta_backward,
                            int bc_forward, int bc_backward, int gate, int y, int64_t tokens, int64_t bc_width, int64_t bc_offset,
                            int64_t gate_width, int64_t gate_offset, bool state_int8, const AnyArray& a_log2, const AnyArray& decay_tok,
                            const AnyArray& input_scale, const AnyArray& b_scale_state, const AnyArray& b_scale_tok,
                            const AnyArray& c_scale_state, const AnyArray& c_scale_tok, const AnyArray& y_scale, const AnyArray& skip_scale,
                            const AnyArray& gate_scale, const AnyArray& out_inv_scale_tok) {
  const Reader read(name);
  BidirectionalScanSpec spec;
  spec.name = name;
  spec.u[0] = u_forward;
  spec.u[1] = u_backward;
  spec.delta[0] = delta_forward;
  spec.delta[1] = delta_backward;
  spec.bc[0] = bc_forward;
  spec.bc[1] = bc_backward;
  spec.gate = gate;
  spec.y = y;
  spec.tokens = tokens;
  spec.bc_width = bc_width;
  spec.bc_offset = bc_offset;
  spec.gate_width = gate_width;
  spec.gate_offset = gate_offset;
  spec.state_int8 = state_int8;
  spec.a_log2 = read.array<float>("a_log2", a_log2, {2, kAny, kAny});
  spec.channels = Reader::dimension(a_log2, 1);
  spec.states = Reader::dimension(a_log2, 2);
  spec.decay_tok = read.array<float>("decay_tok", decay_tok, {2, tokens});
  spec.input_scale = read.array<float>("input_scale", input_scale, {2, spec.channels});
  spec.b_scale_state = read.array<float>("b_scale_state", b_scale_state, {2, spec.states});
  spec.b_scale_tok = read.array<float>("b_scale_tok", b_scale_tok, {2, tokens});
  spec.c_scale_state = read.array<float>("c_scale_state", c_scale_state, {2, spec.states});
  spec.c_scale_tok = read.array<float>("c_scale_tok", c_scale_tok, {2, tokens});
  spec.y_scale = read.array<float>("y_scale", y_scale, {2, spec.channels});
  spec.skip_scale = read.array<float>("skip_scale", skip_scale, {2, spec.channels});
  spec.gate_scale = read.array<float>("gate_scale", gate_scale, {spec.channels});
  spec.out_inv_scale_tok = read.array<float>("out_inv_scale_tok", out_inv_scale_tok, {tokens});
  program.add_bidirectional_scan(spec);
}

void add_add_rms_norm_quant(Program& program, const std::string& name, int hidden, std::optional<int> residual,
                            const std::optional<AnyArray>& residual_constant, int residual_out, int y, int64_t tokens, const AnyArray& gain,
                            const AnyArray& inv_scale_tok, float epsilon) {
  const Reader read(name);
  AddRmsNormQuantSpec spec;
  spec.name = name;
  spec.hidden = hidden;
  if (residual.has_value() && *residual < 0) read.fail("residual", "is " + std::to_string(*residual) + ", which is no value");
  spec.residual = residual.value_or(-1);
  spec.residual_out = residual_out;
  spec.y = y;
  spec.tokens = tokens;
  spec.epsilon = epsilon;
  spec.gain = read.array<float>("gain", gain, {kAny});
  spec.features = Reader::dimension(gain, 0);
  spec.residual_constant = read.optional_array<float>("residual_constant", residual_constant, {tokens, spec.features});
  spec.inv_scale_tok = read.array<float>("inv_scale_tok", inv_scale_tok, {tokens});
  program.add_add_rms_norm_quant(spec);
}

void add_copy(Program& program, const std::string& name, int x, int y, int64_t element_bytes, const std::vector<int64_t>& shape,
              const std::vector<int64_t>& src_strides, int64_t src_offset) {
  program.add_copy({name, x, y, element_bytes, shape, src_strides, src_offset});
}

void add_gather(Program& program, const std::string& name, int x, int y, int64_t outer, int64_t axis_length, int64_t inner_bytes,
                const AnyArray& indices) {
  program.add_gather({name, x, y, outer, axis_length, inner_bytes, Reader(name).array<int64_t>("indices", indices, {kAny})});
}

// An array's memory through Python's buffer protocol, held for as long as this lives.
class HeldBuffer {
 public:
  HeldBuffer(nb::handle object, const std::string& what, int64_t expected_bytes, bool writable) {
    if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE : PyBUF_C_CONTIGUOUS) != 0) {
      PyErr_Clear();
      throw std::invalid_argument(what + " must be a C-contiguous" + (writable ? ", writable" : "") + " array in host memory");
    }
    std::string problem;
    if (view_.len != expected_bytes) {
      problem = " has " + std::to_string(view_.len) + " bytes, expected " + std::to_string(expected_bytes);
    } else if (reinterpret_cast<uintptr_t>(view_.buf) % sizeof(float) != 0 && view_.itemsize > 1) {
      problem = " is not aligned";
    }
    if (!problem.empty()) {
      PyBuffer_Release(&view_);
      throw std::invalid_argument(what + problem);
    }
  }
  HeldBuffer(HeldBuffer&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
  HeldBuffer& operator=(HeldBuffer&&) = delete;
  ~HeldBuffer() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }
  void* data() const { return view_.buf; }

 private:
  Py_buffer view_ = {};
};

std::vector<HeldBuffer> hold(const Program& program, const char* what, const std::vector<int>& values, const nb::sequence& arrays,
                             int64_t batch, bool writable) {
  const size_t count = nb::len(arrays);
  if (count != values.size()) {
    throw std::invalid_argument("got " + std::to_string(count) + " " + what + "s, expected " + std::to_string(values.size()));
  }
  std::vector<HeldBuffer> buffers;
  buffers.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    int64_t bytes;
    if (batch < 1 || __builtin_mul_overflow(batch, program.value_bytes(values[i]), &bytes)) {
      throw std::invalid_argument("batch is " + std::to_string(batch) + ", expected at least 1 and sizes below 2^63");
    }
    buffers.emplace_back(nb::object(arrays[i]), std::string(what) + " " + std::to_string(i), bytes, writable);
  }
  return buffers;
}

void run_with(Program& program, int64_t batch, const nb::sequence& inputs, const nb::sequence& outputs, std::vector<double>* seconds) {
  if (!program.finalized()) throw std::invalid_argument("the program is not finalized");
  const std::vector<HeldBuffer> held_inputs = hold(program, "input", program.inputs(), inputs, batch, false);
  const std::vector<HeldBuffer> held_outputs = hold(program, "output", program.outputs(), outputs, batch, true);
  std::vector<const void*> input_pointers;
  std::vector<void*> output_pointers;
  for (const HeldBuffer& buffer : held_inputs) input_pointers.push_back(buffer.data());
  for (const HeldBuffer& buffer : held_outputs) output_pointers.push_back(buffer.data());
  const nb::gil_scoped_release release;
  program.run(batch, input_pointers, output_pointers, seconds);
}

void run(Program& program, int64_t batch, const nb::sequence& inputs, const nb::sequence& outputs) {
  run_with(program, batch, inputs, outputs, nullptr);
}

std::vector<double> run_timed(Program& program, int64_t batch, const nb::sequence& inputs, const nb::sequence& outputs) {
  std::vector<double> seconds;
  run_with(program, batch, inputs, outputs, &seconds);
  return seconds;
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Isa isa : available_isas()) names.push_back(isa_name(isa));
  return names;
}

}  // namespace
}  // namespace vimtrt

NB_MODULE(_native, m) {
  using namespace vimtrt;
  using NoGil = nb::call_guard<nb::gil_scoped_release>;  // what may wait for a run in progress

  m.doc() = "The native CPU engine.";
  bind_scan_fp32(m);
  m.def(
      "measure_rates",
      [](const std::string& isa) {
        const Rates rates = measure_rates(isa_from_name(isa));
        return std::make_pair(rates.int8_multiply_adds, rates.fp32_operations);
      },
      "isa"_a, NoGil(), "int8 multiply-adds and fp32 operations a second of one thread; 0: not known.");
  m.def("available_isas", &isa_names, "Instruction sets that can run here, best first.");

  nb::class_<Program>(m, "Program", "A list of operators over values, run on the CPU.")
      .def(
          "__init__",
          [](Program* self, const std::string& isa, int threads, int64_t max_constant_bytes) {
            new (self) Program(isa_from_name(isa), threads, max_constant_bytes);
          },
          "isa"_a, "threads"_a, "max_constant_bytes"_a = Program::kMaxConstantBytes)
      .def("set_threads", &Program::set_threads, "threads"_a, NoGil())
      .def("add_value", &Program::add_value, "bytes_per_sample"_a)
      .def("add_kscaled_linear", &add_kscaled_linear, nb::kw_only(), "name"_a, "x"_a, "y"_a, "tokens"_a, "x_width"_a, "x_offset"_a,
           "weight"_a, "token_scale"_a, "channel_scale"_a, "bias"_a, "out_token_scale"_a, "table"_a.none() = nb::none(),
           "table_id"_a.none() = nb::none(), "float_output"_a = false)
      .def("add_quant_conv1d_silu", &add_quant_conv1d_silu, nb::kw_only(), "name"_a, "x"_a, "u_forward"_a, "u_backward"_a, "tokens"_a,
           "x_width"_a, "x_offset"_a, "weight"_a, "channel_scale"_a, "bias"_a, "table"_a, "table_id"_a)
      .def("add_bidirectional_scan", &add_bidirectional_scan, nb::kw_only(), "name"_a, "u_forward"_a, "u_backward"_a, "delta_forward"_a,
           "delta_backward"_a, "bc_forward"_a, "bc_backward"_a, "gate"_a, "y"_a, "tokens"_a, "bc_width"_a, "bc_offset"_a, "gate_width"_a,
           "gate_offset"_a, "state_int8"_a, "a_log2"_a, "decay_tok"_a, "input_scale"_a, "b_scale_state"_a, "b_scale_tok"_a,
           "c_scale_state"_a, "c_scale_tok"_a, "y_scale"_a, "skip_scale"_a, "gate_scale"_a, "out_inv_scale_tok"_a)
      .def("add_add_rms_norm_quant", &add_add_rms_norm_quant, nb::kw_only(), "name"_a, "hidden"_a, "residual"_a.none() = nb::none(),
           "residual_constant"_a.none() = nb::none(), "residual_out"_a, "y"_a, "tokens"_a, "gain"_a, "inv_scale_tok"_a, "epsilon"_a)
      .def("add_copy", &add_copy, nb::kw_only(), "name"_a, "x"_a, "y"_a, "element_bytes"_a, "shape"_a, "src_strides"_a, "src_offset"_a = 0)
      .def("add_gather", &add_gather, nb::kw_only(), "name"_a, "x"_a, "y"_a, "outer"_a, "axis_length"_a, "inner_bytes"_a, "indices"_a)
      .def("finalize", &Program::finalize, "inputs"_a, "outputs"_a, NoGil())
      .def("run", &run, "batch"_a, "inputs"_a, "outputs"_a)
      .def("run_timed", &run_timed, "batch"_a, "inputs"_a, "outputs"_a)
      .def("value_bytes", &Program::value_bytes, "value"_a)
      .def_prop_ro("isa", [](const Program& self) { return std::string(isa_name(self.isa())); })
      .def_prop_ro("threads", &Program::threads)
      .def_prop_ro("arena_bytes", &Program::arena_bytes)
      .def_prop_ro("constant_bytes", &Program::constant_bytes)
      .def_prop_ro("step_names", &Program::step_names, NoGil());
}
