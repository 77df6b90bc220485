#include "plugins/common/op.h"

#include <cctype>
#include <cmath>
#include <limits>
#include <sstream>

namespace vimtrt {
namespace {

constexpr size_t kMaxShown = 40;                  // characters of a wrong text
constexpr int64_t kMaxTables = int64_t{1} << 22;  // of 256 entries: their places fit int32
constexpr char kBatch = 'B', kBatchOrOne = 'R';

// "2", "E", "C/2", "3*N".
Dimension parse_dimension(const std::string& text) {
  Dimension dimension;
  size_t at = 0;
  const auto number = [&] {
    int64_t value = 0;
    while (at < text.size() && std::isdigit(static_cast<unsigned char>(text[at])))
      value = 10 * value + (text[at++] - '0');
    return value;
  };
  if (std::isdigit(static_cast<unsigned char>(text[0]))) {
    dimension.times = number();
    if (at == text.size()) return dimension;
    ++at;  // *
  }
  dimension.letter = text.at(at++);
  if (at < text.size()) {
    ++at;  // /
    dimension.parts = number();
  }
  return dimension;
}

TensorDef tensor(const char* name, Type type, const char* shape, TensorDef::Source source) {
  TensorDef result{name, type, {}, source};
  std::istringstream words(shape);
  for (std::string word; words >> word;) result.shape.push_back(parse_dimension(word));
  return result;
}

std::string dimension_text(const Dimension& dimension) {
  if (dimension.letter == '\0') return std::to_string(dimension.times);
  return (dimension.times > 1 ? std::to_string(dimension.times) + "*" : "") + dimension.letter +
         (dimension.parts > 1 ? "/" + std::to_string(dimension.parts) : "");
}

bool is_batch(const Dimension& dimension) { return dimension.letter == kBatch || dimension.letter == kBatchOrOne; }

bool has_batch(const TensorDef& tensor) { return !tensor.shape.empty() && is_batch(tensor.shape.front()); }

std::string list(const std::vector<int64_t>& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

std::string list(const std::vector<Dimension>& shape) {
  std::string text;
  for (const Dimension& dimension : shape) text += (text.empty() ? "" : ", ") + dimension_text(dimension);
  return "[" + text + "]";
}

[[noreturn]] void fail(const TensorDef& tensor, const std::string& what) { throw OpError(where(tensor) + what); }

// Of a constant whose values are known.
void check_values(const TensorDef& def, const Operand& operand, const Sizes& sizes) {
  int64_t count = 1;
  for (const int64_t size : operand.shape) count *= size;
  if (def.type == Type::kFloat32) {
    const float* values = static_cast<const float*>(operand.data);
    for (int64_t i = 0; i < count; ++i) {
      if (!std::isfinite(values[i])) fail(def, "holds NaN or infinity at element " + std::to_string(i));
    }
  }
  if (def.holds_indices) {
    if (sizes[def.limit] > kMaxTables) fail(def, "at most " + std::to_string(kMaxTables) + " tables are possible");
    const int32_t* values = static_cast<const int32_t*>(operand.data);
    for (int64_t i = 0; i < count; ++i) {
      if (values[i] < def.lowest || values[i] >= sizes[def.limit]) {
        fail(def, "must lie in " + std::to_string(def.lowest) + ".." + std::to_string(sizes[def.limit] - 1) +
                      ", holds " + std::to_string(values[i]) + " at element " + std::to_string(i));
      }
    }
  }
}

}  // namespace

const char* type_name(Type type) { return type == Type::kInt8 ? "int8" : type == Type::kInt32 ? "int32" : "float32"; }

int64_t type_bytes(Type type) { return type == Type::kInt8 ? 1 : 4; }

TensorDef TensorDef::packed() const {
  TensorDef result = *this;
  result.is_packed = true;
  return result;
}

TensorDef TensorDef::indices(int32_t from, char below) const {
  TensorDef result = *this;
  result.holds_indices = true;
  result.lowest = from;
  result.limit = below;
  return result;
}

TensorDef TensorDef::typed_by(int attribute) const {
  TensorDef result = *this;
  result.type_attribute = attribute;
  return result;
}

TensorDef activation(const char* name, Type type, const char* shape) {
  return tensor(name, type, shape, TensorDef::Source::kActivation);
}

TensorDef constant(const char* name, Type type, const char* shape) {
  return tensor(name, type, shape, TensorDef::Source::kConstant);
}

TensorDef activation_or_constant(const char* name, Type type, const char* shape) {
  return tensor(name, type, shape, TensorDef::Source::kEither);
}

TensorDef output(const char* name, Type type, const char* shape) {
  TensorDef result = activation(name, type, shape);
  result.is_output = true;
  return result;
}

std::string where(const TensorDef& tensor) { return (tensor.is_output ? "output " : "input ") + tensor.name + ": "; }

std::string shape_text(const TensorDef& tensor) {
  std::string text;
  for (const Dimension& dimension : tensor.shape) text += (text.empty() ? "" : " ") + dimension_text(dimension);
  return text;
}

AttributeDef integer_attribute(const char* name, int32_t value) { return {name, AttributeDef::Kind::kInteger, value}; }

AttributeDef real_attribute(const char* name, float value) { return {name, AttributeDef::Kind::kReal, 0, value}; }

AttributeDef text_attribute(const char* name, std::vector<std::string> choices) {
  return {name, AttributeDef::Kind::kText, 0, 0, std::move(choices)};
}

Attributes default_attributes(const OpDef& op) {
  Attributes attributes;
  for (size_t i = 0; i < op.attributes.size(); ++i) {
    attributes.integer[i] = op.attributes[i].integer;
    attributes.real[i] = op.attributes[i].real;
  }
  return attributes;
}

size_t attribute_index(const OpDef& op, const std::string& name) {
  std::string known;
  for (size_t i = 0; i < op.attributes.size(); ++i) {
    if (op.attributes[i].name == name) return i;
    known += (known.empty() ? "" : ", ") + op.attributes[i].name;
  }
  throw OpError("there is no attribute " + name + "; " + op.name + " takes " + known);
}

void set_attribute(const OpDef& op, size_t index, const AttributeValue& value, Attributes& attributes) {
  const AttributeDef& def = op.attributes[index];
  const std::string where = "attribute " + def.name + ": ";
  if (def.kind == AttributeDef::Kind::kInteger) {
    const int64_t* number = std::get_if<int64_t>(&value);
    if (number == nullptr) throw OpError(where + "must be one int32");
    if (*number < std::numeric_limits<int32_t>::min() || *number > std::numeric_limits<int32_t>::max())
      throw OpError(where + std::to_string(*number) + " is no int32");
    attributes.integer[index] = static_cast<int32_t>(*number);
  } else if (def.kind == AttributeDef::Kind::kReal) {
    const double* number = std::get_if<double>(&value);
    if (number == nullptr) throw OpError(where + "must be one float32");
    attributes.real[index] = static_cast<float>(*number);
  } else {
    const std::string* text = std::get_if<std::string>(&value);
    if (text == nullptr) throw OpError(where + "must be text");
    std::string known;
    for (size_t i = 0; i < def.choices.size(); ++i) {
      if (*text == def.choices[i]) {
        attributes.integer[index] = static_cast<int32_t>(i);
        return;
      }
      known += (known.empty() ? "" : " or ") + def.choices[i];
    }
    throw OpError(where + "must be " + known + ", got " + text->substr(0, kMaxShown));
  }
}

const std::string& text_of(const OpDef& op, const Attributes& attributes, size_t index) {
  return op.attributes[index].choices[static_cast<size_t>(attributes.integer[index])];
}

void check_counts(const OpDef& op, size_t inputs, size_t outputs) {
  const size_t all = op.inputs.size(), required = all - op.optional;
  if (inputs != all && inputs != required) {
    throw OpError(op.name + " takes " + (op.optional > 0 ? std::to_string(required) + " or " : "") +
                  std::to_string(all) + " inputs, got " + std::to_string(inputs));
  }
  if (outputs != op.outputs.size()) {
    throw OpError(op.name + " has " + std::to_string(op.outputs.size()) + " outputs, got " + std::to_string(outputs));
  }
}

void match_shape(const TensorDef& def, const std::vector<int64_t>& shape, Sizes& sizes) {
  if (shape.size() != def.shape.size()) fail(def, "expected the shape " + list(def.shape) + ", got " + list(shape));
  for (size_t i = 0; i < shape.size(); ++i) {
    const Dimension& dimension = def.shape[i];
    const int64_t got = shape[i];
    const bool is_possible = is_batch(dimension) ? got >= Sizes::kUnknown : got >= 1;
    const bool is_small = got <= std::numeric_limits<int32_t>::max();
    int64_t expected = dimension.times;
    if (dimension.letter != '\0' && is_small) {
      int64_t& size = sizes[dimension.letter];
      if (size == Sizes::kUnset) size = got < 0 ? got : got * dimension.parts / dimension.times;
      expected = size < 0 ? size : size * dimension.times / dimension.parts;
      if (size > 0 && size * dimension.times % dimension.parts != 0) expected = -1;  // no whole number: nothing fits
    }
    if (got != expected || !is_possible || !is_small) {
      const std::string wanted = got == expected || expected < 1 ? "another size" : std::to_string(expected);
      fail(def, dimension_text(dimension) + " is " + std::to_string(got) + ", expected " + wanted + "; shape " +
                    list(def.shape) + ", got " + list(shape));
    }
  }
}

Arguments resolve(const OpDef& op, const std::vector<Operand>& inputs, const Attributes& attributes) {
  check_counts(op, inputs.size(), op.outputs.size());
  Arguments arguments;
  arguments.attributes = attributes;
  arguments.input_count = static_cast<int>(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TensorDef& def = op.inputs[i];
    if (inputs[i].type != def.type) {
      fail(def, std::string("expected ") + type_name(def.type) + ", got " + type_name(inputs[i].type));
    }
    match_shape(def, inputs[i].shape, arguments.sizes);
    const bool is_constant = inputs[i].data != nullptr;
    if (!is_constant && def.source == TensorDef::Source::kConstant) fail(def, "must be a constant of the network");
    if (is_constant && def.source == TensorDef::Source::kActivation) fail(def, "must be an activation, not a constant");
    if (def.source == TensorDef::Source::kEither && has_batch(def) && is_constant != (inputs[i].shape[0] == 1)) {
      fail(def, "must be an activation, or a constant of shape " + list(def.shape) + " whose first size is 1");
    }
    arguments.inputs[i] = inputs[i].data;
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].data != nullptr) check_values(op.inputs[i], inputs[i], arguments.sizes);
  }
  check_limits(op, arguments);
  return arguments;
}

Type output_type(const OpDef& op, size_t output, const Attributes& attributes) {
  const TensorDef& def = op.outputs[output];
  if (def.type_attribute < 0) return def.type;
  const std::string& text = text_of(op, attributes, static_cast<size_t>(def.type_attribute));
  for (const Type type : {Type::kInt8, Type::kInt32, Type::kFloat32}) {
    if (text == type_name(type)) return type;
  }
  return def.type;
}

std::vector<int64_t> output_shape(const OpDef& op, size_t output, const Sizes& sizes) {
  std::vector<int64_t> shape;
  for (const Dimension& dimension : op.outputs[output].shape) {
    const int64_t size = dimension.letter == '\0' ? 1 : sizes[dimension.letter];
    shape.push_back(size < 0 ? size : size * dimension.times / dimension.parts);
  }
  return shape;
}

void check_columns(const Arguments& arguments, const OpDef& op, size_t offset_attribute, int64_t needed,
                   int64_t available) {
  const int64_t offset = arguments.integer(offset_attribute);
  if (offset < 0 || offset + needed > available) {
    throw OpError(op.attributes[offset_attribute].name + "=" + std::to_string(offset) + " and " +
                  std::to_string(needed) + " columns do not fit into " + std::to_string(available));
  }
}

}  // namespace vimtrt
