// An operator, written down once: what it takes and gives, under which attributes and limits. The ONNX schema and
// check, the CPU executor, the TensorRT plugin, the tests' modules and Python's descriptions are made from it. How one
// is added: plugins/README.md.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace vimtrt {

enum class Type { kInt8, kInt32, kFloat32 };
const char* type_name(Type type);  // "int8", "int32", "float32"
int64_t type_bytes(Type type);

// What is wrong with a node, in one sentence.
struct OpError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// One dimension of a tensor: letter * times / parts, or `times` alone where there is no letter.
struct Dimension {
  char letter = '\0';
  int64_t times = 1;
  int64_t parts = 1;
};

// An input or output. Its shape is written in letters, each the same size wherever it stands in the operator: "B L X",
// "2 E N", "T 256", "C/2", "3*N". B is the batch; R is the batch or 1.
struct TensorDef {
  enum class Source { kActivation, kConstant, kEither };  // kEither: of shape [1, ...] where it is a constant

  std::string name;
  Type type;
  std::vector<Dimension> shape;
  Source source = Source::kConstant;
  bool is_packed = false;      // kernels that pack read their own copy: the program keeps no other
  bool holds_indices = false;  // int32 from `lowest` to the size of `limit`, exclusive
  int32_t lowest = 0;
  char limit = '\0';
  bool is_output = false;
  int type_attribute = -1;  // of an output: the attribute whose text is the type

  TensorDef packed() const;
  TensorDef indices(int32_t lowest, char limit) const;
  TensorDef typed_by(int attribute) const;
};

TensorDef activation(const char* name, Type type, const char* shape);
TensorDef constant(const char* name, Type type, const char* shape);
TensorDef activation_or_constant(const char* name, Type type, const char* shape);
TensorDef output(const char* name, Type type, const char* shape);
std::string shape_text(const TensorDef& tensor);  // "B L X"
std::string where(const TensorDef& tensor);       // "input weight: "

// An attribute with its default: an integer, a real, or one of several texts, the first being the default.
struct AttributeDef {
  enum class Kind { kInteger, kReal, kText };

  std::string name;
  Kind kind;
  int32_t integer = 0;
  float real = 0;
  std::vector<std::string> choices = {};
};

AttributeDef integer_attribute(const char* name, int32_t value = 0);
AttributeDef real_attribute(const char* name, float value);
AttributeDef text_attribute(const char* name, std::vector<std::string> choices);

// The attributes of one node, in the order of their definitions.
constexpr size_t kMaxAttributes = 8;
struct Attributes {
  std::array<int32_t, kMaxAttributes> integer{};  // of a text: the place among its choices
  std::array<float, kMaxAttributes> real{};
};

// Sizes by letter.
class Sizes {
 public:
  static constexpr int64_t kUnknown = -1;  // of a batch
  static constexpr int64_t kUnset = -2;
  Sizes() { sizes_.fill(kUnset); }
  int64_t& operator[](char name) { return sizes_[static_cast<size_t>(name - 'A')]; }
  int64_t operator[](char name) const { return sizes_[static_cast<size_t>(name - 'A')]; }

 private:
  std::array<int64_t, 26> sizes_;
};

// A node as its kernels take it. Pointers may be null where they are not known yet.
constexpr size_t kMaxInputs = 24, kMaxOutputs = 4;
struct Arguments {
  Sizes sizes;
  Attributes attributes;
  int input_count = 0;
  std::array<const void*, kMaxInputs> inputs{};
  std::array<void*, kMaxOutputs> outputs{};

  int64_t size(char letter) const { return sizes[letter]; }
  int32_t narrow(char letter) const { return static_cast<int32_t>(sizes[letter]); }  // every size but the batch fits
  int32_t integer(size_t attribute) const { return attributes.integer[attribute]; }
  float real(size_t attribute) const { return attributes.real[attribute]; }
  bool chooses(size_t attribute, int choice) const { return attributes.integer[attribute] == choice; }

  // The input, `offset` elements from its start.
  template <class T>
  const T* input(size_t i, int64_t offset = 0) const {
    const T* start = static_cast<const T*>(inputs[i]);
    return start == nullptr ? nullptr : start + offset;
  }
  template <class T>
  T* output(size_t i) const {
    return static_cast<T*>(outputs[i]);
  }
};

struct OpDef {
  std::string name;  // in networks
  std::string stem;  // of its folder and functions
  std::vector<TensorDef> inputs;
  std::vector<TensorDef> outputs;
  std::vector<AttributeDef> attributes;
  size_t optional = 0;  // trailing inputs that may be absent, all or none of them
  // What letters and types cannot say, or null: raises OpError.
  void (*check)(const Arguments& arguments) = nullptr;
};

// An input of a node: its shape with B first where it is an activation, and its values where they are known. `fixed`
// says that they are a constant's even where they are not known.
struct Operand {
  Type type;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

using AttributeValue = std::variant<int64_t, double, std::string>;

Attributes default_attributes(const OpDef& op);
// Raises OpError for an unknown, repeated, mistyped or senseless one.
void set_attribute(const OpDef& op, size_t index, const AttributeValue& value, Attributes& attributes);
size_t attribute_index(const OpDef& op, const std::string& name);
const std::string& text_of(const OpDef& op, const Attributes& attributes, size_t index);

// How many inputs or outputs there may be. Raises OpError.
void check_counts(const OpDef& op, size_t inputs, size_t outputs);

// Takes the sizes of letters that are seen for the first time and checks the others. Every size but the batch is 1 to
// 2^31 - 1; the batch may be 0 or unknown. Raises OpError.
void match_shape(const TensorDef& tensor, const std::vector<int64_t>& shape, Sizes& sizes);

// Checks a node's inputs against the definition: count, types, shapes, values that are known, limits. Raises OpError.
Arguments resolve(const OpDef& op, const std::vector<Operand>& inputs, const Attributes& attributes);

Type output_type(const OpDef& op, size_t output, const Attributes& attributes);
std::vector<int64_t> output_shape(const OpDef& op, size_t output, const Sizes& sizes);

// What letters and types cannot say.
inline void check_limits(const OpDef& op, const Arguments& arguments) {
  if (op.check != nullptr) op.check(arguments);
}

// Raises OpError where `needed` columns from the offset that the attribute gives do not lie within `available`.
void check_columns(const Arguments& arguments, const OpDef& op, size_t offset_attribute, int64_t needed,
                   int64_t available);

}  // namespace vimtrt
