// The CPU engine for a Python that cannot load it, such as one beside an emulator: reads calls of Program from its
// input and answers on its output (tests/support/foreign.py writes and reads them). Numbers are those of the machine,
// 64-bit, little-endian.
//
//   call    string name, u32 fields, then for each: string key, u8 kind, and
//           'i' an integer   'f' a double   's' a string   'l' a list of integers   'a' an array: a list, its shape,
//           then u64 bytes and these
//   string  u32 length and bytes;  list  u32 count and integers
//   answer  of run alone: u8 0 and the bytes of every output; or, of any call, u8 1 and a string
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "plugins/executor/cpu_program.h"
#include "plugins/operators.h"

using namespace vimtrt;

namespace {

constexpr size_t kGuard = 64;
constexpr uint8_t kGuardByte = 0x5c;

struct Field {
  int64_t integer = 0;
  double number = 0;
  std::string text;
  std::vector<int64_t> list;
  std::vector<uint8_t> bytes;
};

struct Call {
  std::string name;
  std::map<std::string, Field> fields;

  const Field& field(const std::string& key) const {
    const auto found = fields.find(key);
    if (found == fields.end()) throw std::runtime_error(name + ": no " + key);
    return found->second;
  }
  bool has(const std::string& key) const { return fields.count(key) != 0; }
  int64_t integer(const std::string& key) const { return field(key).integer; }
  int value(const std::string& key) const { return static_cast<int>(integer(key)); }
  int64_t dimension(const std::string& key, size_t axis) const { return field(key).list.at(axis); }
  std::vector<int> values(const std::string& key) const {
    return std::vector<int>(field(key).list.begin(), field(key).list.end());
  }
  template <class T>
  Array<T> array(const std::string& key) const {
    if (!has(key)) return {};
    return {reinterpret_cast<const T*>(field(key).bytes.data()), field(key).bytes.size() / sizeof(T)};
  }
};

template <class T>
bool get(T& value) {
  return std::fread(&value, sizeof value, 1, stdin) == 1;
}

void get_bytes(void* target, size_t count) {
  if (count > 0 && std::fread(target, 1, count, stdin) != count) throw std::runtime_error("the call ends early");
}

template <class T>
T need() {
  T value;
  get_bytes(&value, sizeof value);
  return value;
}

std::string need_string() {
  std::string text(need<uint32_t>(), '\0');
  get_bytes(text.data(), text.size());
  return text;
}

std::vector<int64_t> need_list() {
  std::vector<int64_t> list(need<uint32_t>());
  get_bytes(list.data(), list.size() * sizeof(int64_t));
  return list;
}

// False at the end of the input.
bool read_call(Call& call) {
  uint32_t length;
  if (!get(length)) return false;
  call = Call();
  call.name.resize(length);
  get_bytes(call.name.data(), length);
  for (uint32_t left = need<uint32_t>(); left > 0; --left) {
    Field& field = call.fields[need_string()];
    switch (need<char>()) {
      case 'i':
        field.integer = need<int64_t>();
        break;
      case 'f':
        field.number = need<double>();
        break;
      case 's':
        field.text = need_string();
        break;
      case 'l':
        field.list = need_list();
        break;
      case 'a':
        field.list = need_list();
        field.bytes.resize(need<uint64_t>());
        get_bytes(field.bytes.data(), field.bytes.size());
        break;
      default:
        throw std::runtime_error("a field of unknown kind");
    }
  }
  return true;
}

Type type_named(const std::string& name) {
  for (const Type type : {Type::kInt8, Type::kInt32, Type::kFloat32}) {
    if (name == type_name(type)) return type;
  }
  throw std::runtime_error("unknown type " + name);
}

// Input i is a value (value0, type0, shape0) or an array (array0, type0); attributes have their own names after
// "attribute ".
void add(CpuProgram& program, const Call& call) {
  const OpDef& op = operator_named(call.field("op").text);
  std::vector<Source> inputs;
  for (int i = 0; call.has("type" + std::to_string(i)); ++i) {
    const std::string index = std::to_string(i);
    Source source;
    source.type = type_named(call.field("type" + index).text);
    if (call.has("array" + index)) {
      source.shape = call.field("array" + index).list;
      source.data = call.field("array" + index).bytes.data();
    } else {
      source.value = call.value("value" + index);
      source.shape = call.field("shape" + index).list;
    }
    inputs.push_back(source);
  }
  Attributes attributes = default_attributes(op);
  for (size_t i = 0; i < op.attributes.size(); ++i) {
    const std::string key = "attribute " + op.attributes[i].name;
    if (!call.has(key)) continue;
    const Field& field = call.field(key);
    switch (op.attributes[i].kind) {
      case AttributeDef::Kind::kInteger:
        set_attribute(op, i, field.integer, attributes);
        break;
      case AttributeDef::Kind::kReal:
        set_attribute(op, i, field.number, attributes);
        break;
      case AttributeDef::Kind::kText:
        set_attribute(op, i, field.text, attributes);
        break;
    }
  }
  program.add(op, call.field("name").text, inputs, call.values("outputs"), attributes);
}

void add_copy(CpuProgram& program, const Call& call) {
  CopySpec s;
  s.name = call.field("name").text;
  s.x = call.value("x");
  s.y = call.value("y");
  s.element_bytes = call.integer("element_bytes");
  s.shape = call.field("shape").list;
  s.src_strides = call.field("src_strides").list;
  s.src_offset = call.has("src_offset") ? call.integer("src_offset") : 0;
  program.add_copy(s);
}

void add_gather(CpuProgram& program, const Call& call) {
  GatherSpec s;
  s.name = call.field("name").text;
  s.x = call.value("x");
  s.y = call.value("y");
  s.outer = call.integer("outer");
  s.axis_length = call.integer("axis_length");
  s.inner_bytes = call.integer("inner_bytes");
  s.indices = call.array<int64_t>("indices");
  program.add_gather(s);
}

// Outputs come with the bytes that they hold before, and lie between guards; inputs begin at the offsets given.
void run(CpuProgram& program, const Call& call) {
  std::vector<std::vector<uint8_t>> inputs, outputs;
  std::vector<const void*> input_pointers;
  std::vector<void*> output_pointers;
  for (int i = 0; call.has("input" + std::to_string(i)); ++i) {
    const std::vector<uint8_t>& bytes = call.field("input" + std::to_string(i)).bytes;
    inputs.emplace_back(bytes.size() + kGuard);
    uint8_t* target = inputs.back().data() + call.dimension("offsets", static_cast<size_t>(i));
    std::memcpy(target, bytes.data(), bytes.size());
    input_pointers.push_back(target);
  }
  for (int i = 0; call.has("output" + std::to_string(i)); ++i) {
    const std::vector<uint8_t>& bytes = call.field("output" + std::to_string(i)).bytes;
    outputs.emplace_back(bytes.size() + 2 * kGuard, kGuardByte);
    std::memcpy(outputs.back().data() + kGuard, bytes.data(), bytes.size());
    output_pointers.push_back(outputs.back().data() + kGuard);
  }
  program.run(call.integer("batch"), input_pointers, output_pointers);
  for (const std::vector<uint8_t>& output : outputs) {
    for (size_t i = 0; i < kGuard; ++i) {
      if (output[i] != kGuardByte || output[output.size() - 1 - i] != kGuardByte)
        throw std::runtime_error("wrote outside an output");
    }
  }
  std::fputc(0, stdout);
  for (const std::vector<uint8_t>& output : outputs)
    std::fwrite(output.data() + kGuard, 1, output.size() - 2 * kGuard, stdout);
  std::fflush(stdout);
}

void serve() {
  std::unique_ptr<CpuProgram> program;
  Call call;
  while (read_call(call)) {
    if (call.name == "program") {
      program = std::make_unique<CpuProgram>(isa_from_name(call.field("isa").text), call.value("threads"));
      continue;
    }
    if (program == nullptr) throw std::runtime_error("there is no program yet");
    if (call.name == "add_value") {
      program->add_value(call.integer("bytes_per_sample"));
    } else if (call.name == "add") {
      add(*program, call);
    } else if (call.name == "add_copy") {
      add_copy(*program, call);
    } else if (call.name == "add_gather") {
      add_gather(*program, call);
    } else if (call.name == "finalize") {
      program->finalize(call.values("inputs"), call.values("outputs"));
    } else if (call.name == "run") {
      run(*program, call);
    } else {
      throw std::runtime_error("unknown call " + call.name);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--isas") {
    for (const Isa isa : available_isas()) std::printf("%s\n", isa_name(isa));
    return 0;
  }
  try {
    serve();
  } catch (const std::exception& error) {
    const uint32_t length = static_cast<uint32_t>(std::strlen(error.what()));
    std::fputc(1, stdout);
    std::fwrite(&length, sizeof length, 1, stdout);
    std::fwrite(error.what(), 1, length, stdout);
    std::fflush(stdout);
    return 1;
  }
  return 0;
}
