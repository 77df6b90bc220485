#include "plugins/bindings/program_binding.h"

#include <stdexcept>

#include "plugins/operators.h"

namespace nb = nanobind;

namespace vimtrt {
namespace {

std::string dtype_text(const nb::dlpack::dtype& dtype) {
  const char* kinds[] = {"int", "uint", "float"};
  return (dtype.code < 3 ? kinds[dtype.code] : "another type of ") + std::to_string(dtype.bits);
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

}  // namespace

Type type_named(const std::string& name) {
  for (const Type type : {Type::kInt8, Type::kInt32, Type::kFloat32}) {
    if (name == type_name(type)) return type;
  }
  throw OpError("there is no type " + name + "; the types are int8, int32 and float32");
}

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

void add_node(Program& program, const std::string& op_name, const std::string& name,
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

void add_gather(Program& program, const std::string& name, int x, int y, int64_t outer, int64_t axis_length,
                int64_t inner_bytes, const AnyArray& indices) {
  if (indices.dtype() != nb::dtype<int64_t>() || indices.ndim() != 1)
    throw std::invalid_argument(name + ": indices must be a list of int64");
  check_layout(name + ": indices: ", indices, alignof(int64_t));
  program.add_gather(
      {name, x, y, outer, axis_length, inner_bytes, {static_cast<const int64_t*>(indices.data()), indices.size()}});
}

}  // namespace vimtrt
