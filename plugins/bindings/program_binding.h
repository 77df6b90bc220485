// What the modules of programs share: a program's nodes from Python's arguments. Arrays are checked here (type, shape,
// layout), everything else by Program itself; every complaint is a ValueError.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "plugins/executor/program.h"

namespace vimtrt {

using AnyArray = nanobind::ndarray<nanobind::ro>;

Type type_named(const std::string& name);
Operand constant_operand(const OpDef& op, size_t i, const AnyArray& array);
Attributes attributes_of(const OpDef& op, const nanobind::dict& given);

// An activation of a program as (value, type, shape of one sample), or a constant.
using Placed = std::tuple<int, std::string, std::vector<int64_t>>;

void add_node(Program& program, const std::string& op, const std::string& name,
              const std::vector<std::variant<Placed, AnyArray>>& inputs, const std::vector<int>& outputs,
              const nanobind::dict& attributes);
void add_gather(Program& program, const std::string& name, int x, int y, int64_t outer, int64_t axis_length,
                int64_t inner_bytes, const AnyArray& indices);

// What every program has.
template <class Kind>
void bind_program(nanobind::class_<Kind>& kind) {
  namespace nb = nanobind;
  using namespace nb::literals;
  kind.def("add_value", &Kind::add_value, "bytes_per_sample"_a)
      .def(
          "add",
          [](Kind& program, const std::string& op, const std::string& name,
             const std::vector<std::variant<Placed, AnyArray>>& inputs, const std::vector<int>& outputs,
             const nb::dict& attributes) { add_node(program, op, name, inputs, outputs, attributes); },
          "op"_a, "name"_a, "inputs"_a, "outputs"_a, "attributes"_a)
      .def(
          "add_copy",
          [](Kind& program, const std::string& name, int x, int y, int64_t element_bytes,
             const std::vector<int64_t>& shape, const std::vector<int64_t>& src_strides,
             int64_t src_offset) { program.add_copy({name, x, y, element_bytes, shape, src_strides, src_offset}); },
          nb::kw_only(), "name"_a, "x"_a, "y"_a, "element_bytes"_a, "shape"_a, "src_strides"_a, "src_offset"_a = 0)
      .def(
          "add_gather",
          [](Kind& program, const std::string& name, int x, int y, int64_t outer, int64_t axis_length,
             int64_t inner_bytes,
             const AnyArray& indices) { add_gather(program, name, x, y, outer, axis_length, inner_bytes, indices); },
          nb::kw_only(), "name"_a, "x"_a, "y"_a, "outer"_a, "axis_length"_a, "inner_bytes"_a, "indices"_a)
      .def("finalize", &Kind::finalize, "inputs"_a, "outputs"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("value_bytes", &Kind::value_bytes, "value"_a)
      .def_prop_ro("arena_bytes", &Kind::arena_bytes)
      .def_prop_ro("constant_bytes", &Kind::constant_bytes)
      .def_prop_ro("step_names", &Kind::step_names, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace vimtrt
