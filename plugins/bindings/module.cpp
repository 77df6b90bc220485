// pyvimtrt._native: the executor for Python. Arrays are checked here (type, shape, layout), everything else by Program
// itself; every complaint is a ValueError. The types are in pyvimtrt/_native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "plugins/bindings/rates.h"
#include "plugins/common/isa.h"
#include "plugins/executor/program.h"
#include "plugins/operators.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vimtrt {

void bind_scan_fp32(nb::module_& module);  // scan_fp32_module.cpp

namespace {

using AnyArray = nb::ndarray<nb::ro>;

std::string dtype_text(const nb::dlpack::dtype& dtype) {
  const char* kinds[] = {"int", "uint", "float"};
  return (dtype.code < 3 ? kinds[dtype.code] : "another type of ") + std::to_string(dtype.bits);
}

Type type_named(const std::string& name) {
  for (const Type type : {Type::kInt8, Type::kInt32, Type::kFloat32}) {
    if (name == type_name(type)) return type;
  }
  throw OpError("there is no type " + name + "; the types are int8, int32 and float32");
}

std::vector<int64_t> shape_of(const AnyArray& array) {
  std::vector<int64_t> shape;
  for (size_t d = 0; d < array.ndim(); ++d) shape.push_back(static_cast<int64_t>(array.shape(d)));
  return shape;
}

// Raises OpError where the array is not dense, aligned and in host memory.
void check_layout(const std::string& what, const AnyArray& array, size_t alignment) {
  if (array.device_type() != nb::device::cpu::value) throw OpError(what + "must be in host memory");
  int64_t stride = 1;
  for (size_t d = array.ndim(); d-- > 0;) {
    if (array.shape(d) > 1 && array.stride(d) != stride) throw OpError(what + "must be C-contiguous");
    stride *= static_cast<int64_t>(array.shape(d));
  }
  if (reinterpret_cast<uintptr_t>(array.data()) % alignment != 0) throw OpError(what + "is not aligned");
}

// Of an empty array, whose own may be null: it is a constant all the same.
const void* data_of(const AnyArray& array) {
  static const char kNothing = 0;
  return array.data() != nullptr ? array.data() : &kNothing;
}

// An activation of a network as (type, shape with the batch first), or a constant.
using Described = std::tuple<std::string, std::vector<int64_t>>;
// An activation of a program as (value, type, shape of one sample), or a constant.
using Placed = std::tuple<int, std::string, std::vector<int64_t>>;

Operand constant_operand(const OpDef& op, size_t i, const AnyArray& array) {
  if (i >= op.inputs.size()) return {};  // too many: their count is wrong
  const TensorDef& def = op.inputs[i];
  const std::string what = where(def);
  for (const Type type : {Type::kInt8, Type::kInt32, Type::kFloat32}) {
    const bool is_float = type == Type::kFloat32;
    const auto code = static_cast<uint8_t>(is_float ? nb::dlpack::dtype_code::Float : nb::dlpack::dtype_code::Int);
    if (array.dtype().code != code || array.dtype().bits != 8 * type_bytes(type)) continue;
    check_layout(what, array, static_cast<size_t>(type_bytes(type)));
    return {type, shape_of(array), data_of(array)};
  }
  throw OpError(what + "expected " + type_name(def.type) + ", got " + dtype_text(array.dtype()));
}

// What no attribute is: it fits none of the three kinds.
AttributeValue attribute_value(const AttributeDef& def, nb::handle value) {
  int64_t integer = 0;
  double real = 0;
  std::string text;
  if (PyLong_CheckExact(value.ptr()) && nb::try_cast(value, integer)) return integer;
  if (PyFloat_CheckExact(value.ptr()) && nb::try_cast(value, real)) return real;
  if (PyUnicode_CheckExact(value.ptr()) && nb::try_cast(value, text)) return text;
  return def.kind == AttributeDef::Kind::kInteger ? AttributeValue(0.0) : AttributeValue(int64_t{0});
}

Attributes attributes_of(const OpDef& op, const nb::dict& given) {
  Attributes attributes = default_attributes(op);
  for (const auto& [key, value] : given) {
    std::string name;
    if (!nb::try_cast(key, name)) throw OpError("an attribute's name is no text");
    const size_t index = attribute_index(op, name);
    set_attribute(op, index, attribute_value(op.attributes[index], value), attributes);
  }
  return attributes;
}

void add(Program& program, const std::string& op_name, const std::string& name,
         const std::vector<std::variant<Placed, AnyArray>>& inputs, const std::vector<int>& outputs,
         const nb::dict& attributes) {
  try {
    const OpDef& op = operator_named(op_name);
    std::vector<Source> sources;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (const Placed* placed = std::get_if<Placed>(&inputs[i])) {
        sources.push_back({std::get<0>(*placed), type_named(std::get<1>(*placed)), std::get<2>(*placed), nullptr});
      } else {
        const Operand operand = constant_operand(op, i, std::get<AnyArray>(inputs[i]));
        sources.push_back({-1, operand.type, operand.shape, operand.data});
      }
    }
    program.add(op, name, sources, outputs, attributes_of(op, attributes));
  } catch (const OpError& error) {
    throw std::invalid_argument(name + ": " + error.what());
  }
}

// The outputs' types and shapes of a node that is right; raises ValueError for one that is not.
std::vector<Described> check_node(const std::string& op_name,
                                  const std::vector<std::variant<Described, AnyArray>>& inputs,
                                  const nb::dict& attributes) {
  const OpDef& op = operator_named(op_name);
  check_counts(op, inputs.size(), op.outputs.size());
  std::vector<Operand> operands;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (const Described* described = std::get_if<Described>(&inputs[i])) {
      operands.push_back({type_named(std::get<0>(*described)), std::get<1>(*described), nullptr});
    } else {
      operands.push_back(constant_operand(op, i, std::get<AnyArray>(inputs[i])));
    }
  }
  const Attributes chosen = attributes_of(op, attributes);
  const Arguments node = resolve(op, operands, chosen);
  std::vector<Described> outputs;
  for (size_t i = 0; i < op.outputs.size(); ++i)
    outputs.emplace_back(type_name(output_type(op, i, chosen)), output_shape(op, i, node.sizes));
  return outputs;
}

void add_copy(Program& program, const std::string& name, int x, int y, int64_t element_bytes,
              const std::vector<int64_t>& shape, const std::vector<int64_t>& src_strides, int64_t src_offset) {
  program.add_copy({name, x, y, element_bytes, shape, src_strides, src_offset});
}

void add_gather(Program& program, const std::string& name, int x, int y, int64_t outer, int64_t axis_length,
                int64_t inner_bytes, const AnyArray& indices) {
  if (indices.dtype() != nb::dtype<int64_t>() || indices.ndim() != 1)
    throw std::invalid_argument(name + ": indices must be a list of int64");
  check_layout(name + ": indices: ", indices, alignof(int64_t));
  program.add_gather(
      {name, x, y, outer, axis_length, inner_bytes, {static_cast<const int64_t*>(indices.data()), indices.size()}});
}

// Every operator as a dictionary: name, stem, inputs and outputs (name, type or the attribute that gives it, shape,
// source), attributes with their defaults, choices of texts, and how many trailing inputs may be absent.
nb::list describe_operators() {
  nb::list all;
  for (const OpDef* op : operators()) {
    const auto tensors = [&](const std::vector<TensorDef>& defs) {
      nb::list list;
      for (const TensorDef& def : defs) {
        const char* sources[] = {"activation", "constant", "either"};
        const std::string type =
            def.type_attribute < 0 ? type_name(def.type) : op->attributes[static_cast<size_t>(def.type_attribute)].name;
        list.append(nb::make_tuple(def.name, type, shape_text(def), sources[static_cast<int>(def.source)]));
      }
      return list;
    };
    nb::dict attributes, choices, one;
    for (const AttributeDef& def : op->attributes) {
      const char* name = def.name.c_str();
      if (def.kind == AttributeDef::Kind::kInteger) {
        attributes[name] = def.integer;
      } else if (def.kind == AttributeDef::Kind::kReal) {
        attributes[name] = static_cast<double>(def.real);
      } else {
        attributes[name] = def.choices.front();
        choices[name] = def.choices;
      }
    }
    one["name"] = op->name;
    one["stem"] = op->stem;
    one["inputs"] = tensors(op->inputs);
    one["outputs"] = tensors(op->outputs);
    one["attributes"] = attributes;
    one["choices"] = choices;
    one["optional"] = op->optional;
    all.append(one);
  }
  return all;
}

// An array's memory through Python's buffer protocol, held for as long as this lives.
class HeldBuffer {
 public:
  HeldBuffer(nb::handle object, const std::string& what, int64_t expected_bytes, bool writable) {
    if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE : PyBUF_C_CONTIGUOUS) !=
        0) {
      PyErr_Clear();
      throw std::invalid_argument(what + " must be a C-contiguous" + (writable ? ", writable" : "") +
                                  " array in host memory");
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

std::vector<HeldBuffer> hold(const Program& program, const char* what, const std::vector<int>& values,
                             const nb::sequence& arrays, int64_t batch, bool writable) {
  const size_t count = nb::len(arrays);
  if (count != values.size()) {
    throw std::invalid_argument("got " + std::to_string(count) + " " + what + "s, expected " +
                                std::to_string(values.size()));
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

void run_with(Program& program, int64_t batch, const nb::sequence& inputs, const nb::sequence& outputs,
              std::vector<double>* seconds) {
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

std::vector<double> run_timed(Program& program, int64_t batch, const nb::sequence& inputs,
                              const nb::sequence& outputs) {
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
  m.def("operators", &describe_operators, "Every operator's definition.");
  m.def("check_node", &check_node, "op"_a, "inputs"_a, "attributes"_a, "The types and shapes of a node's outputs.");
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
      .def("add", &add, "op"_a, "name"_a, "inputs"_a, "outputs"_a, "attributes"_a)
      .def("add_copy", &add_copy, nb::kw_only(), "name"_a, "x"_a, "y"_a, "element_bytes"_a, "shape"_a, "src_strides"_a,
           "src_offset"_a = 0)
      .def("add_gather", &add_gather, nb::kw_only(), "name"_a, "x"_a, "y"_a, "outer"_a, "axis_length"_a,
           "inner_bytes"_a, "indices"_a)
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
