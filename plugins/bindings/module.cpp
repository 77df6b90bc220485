// pyvimtrt._native: the CPU's executor for Python, and what the operators are. The types are in pyvimtrt/_native.pyi.
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

#include "plugins/bindings/program_binding.h"
#include "plugins/bindings/rates.h"
#include "plugins/common/isa.h"
#include "plugins/executor/cpu_program.h"
#include "plugins/operators.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vimtrt {

void bind_scan_fp32(nb::module_& module);  // scan_fp32_module.cpp

namespace {

// An activation of a network as (type, shape with the batch first), or a constant.
using Described = std::tuple<std::string, std::vector<int64_t>>;

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

std::vector<HeldBuffer> hold(const CpuProgram& program, const char* what, const std::vector<int>& values,
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

void run_with(CpuProgram& program, int64_t batch, const nb::sequence& inputs, const nb::sequence& outputs,
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

void run(CpuProgram& program, int64_t batch, const nb::sequence& inputs, const nb::sequence& outputs) {
  run_with(program, batch, inputs, outputs, nullptr);
}

std::vector<double> run_timed(CpuProgram& program, int64_t batch, const nb::sequence& inputs,
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

  nb::class_<CpuProgram> program(m, "Program", "A list of operators over values, run on the CPU.");
  program
      .def(
          "__init__",
          [](CpuProgram* self, const std::string& isa, int threads, int64_t max_constant_bytes) {
            new (self) CpuProgram(isa_from_name(isa), threads, max_constant_bytes);
          },
          "isa"_a, "threads"_a, "max_constant_bytes"_a = Program::kMaxConstantBytes)
      .def("set_threads", &CpuProgram::set_threads, "threads"_a, NoGil())
      .def("run", &run, "batch"_a, "inputs"_a, "outputs"_a)
      .def("run_timed", &run_timed, "batch"_a, "inputs"_a, "outputs"_a)
      .def_prop_ro("isa", [](const CpuProgram& self) { return std::string(isa_name(self.isa())); })
      .def_prop_ro("threads", &CpuProgram::threads);
  bind_program(program);
}
