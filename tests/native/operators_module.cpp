// The CUDA kernels for Python, on the CPU double (vimtrt_cuda_on_cpu) or on a GPU (vimtrt_cuda_on_gpu); see
// tests/support/kernel_run.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "plugins/bidirectional_scan/kernel.h"
#include "plugins/bindings/cuda_program_binding.h"
#include "plugins/common/cuda_operator.h"
#include "plugins/executor/cuda_program.h"
#include "plugins/kscaled_linear/kernel.h"
#include "plugins/kscaled_linear/op.h"
#include "plugins/operators.h"
#include "tests/native/device.h"
#include "tests/native/probes.h"
#include "tests/native/python_device.h"
#ifdef VIMTRT_CUDA_ON_CPU
#include "tests/cuda_on_cpu/planted.h"
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
  Device(const Settings& settings, size_t count, const char* name)
      : count_(count), memory_(settings, count * sizeof(T), sizeof(T), name) {}

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

std::vector<size_t> sizes_of(const std::vector<int64_t>& shape) {
  return std::vector<size_t>(shape.begin(), shape.end());
}

// Memory of one of the types that operators take.
class AnyMemory {
 public:
  AnyMemory(const Settings& settings, Type type, std::vector<int64_t> shape, const std::string& name)
      : type_(type),
        shape_(std::move(shape)),
        memory_(settings, bytes(), static_cast<size_t>(type_bytes(type)), name) {}

  size_t bytes() const {
    size_t count = static_cast<size_t>(type_bytes(type_));
    for (const int64_t size : shape_) count *= static_cast<size_t>(size);
    return count;
  }
  void* data() const { return memory_.data(); }
  void write(const void* source) { memory_.write(source); }
  void protect() { memory_.protect(); }
  nb::object copy() const {
    switch (type_) {
      case Type::kInt8:
        return copy_as<int8_t>();
      case Type::kInt32:
        return copy_as<int32_t>();
      case Type::kFloat32:
        break;
    }
    return copy_as<float>();
  }

 private:
  template <class T>
  nb::object copy_as() const {
    T* memory = new T[std::max<size_t>(bytes() / sizeof(T), 1)];
    const nb::capsule owner(memory, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    memory_.read(memory);
    const std::vector<size_t> shape = sizes_of(shape_);
    return nb::cast(nb::ndarray<nb::numpy, T>(memory, shape.size(), shape.data(), owner));
  }

  Type type_;
  std::vector<int64_t> shape_;
  test::Memory memory_;
};

const std::map<std::string, KScaledLinearTile> kTiles = {{"small", KScaledLinearTile::kSmall},
                                                         {"flat", KScaledLinearTile::kFlat},
                                                         {"medium", KScaledLinearTile::kMedium},
                                                         {"large", KScaledLinearTile::kLarge}};

using AnyArray = nb::ndarray<nb::c_contig, nb::device::cpu, nb::ro>;

Type type_of(const AnyArray& array) {
  if (array.dtype() == nb::dtype<int8_t>()) return Type::kInt8;
  if (array.dtype() == nb::dtype<int32_t>()) return Type::kInt32;
  if (array.dtype() == nb::dtype<float>()) return Type::kFloat32;
  throw std::invalid_argument("an array is neither int8 nor int32 nor float32");
}

AttributeValue value_of(nb::handle value) {
  if (nb::isinstance<nb::str>(value)) return nb::cast<std::string>(value);
  if (nb::isinstance<nb::int_>(value)) return nb::cast<int64_t>(value);
  return nb::cast<double>(value);
}

// Runs a node of an operator: `inputs` by name, in the definition's order. Every input lies in protected memory of its
// own and every output in poisoned memory of its own, but where `in_place` says, by name, in which input's memory an
// output lies. `with_workspace`: false leaves the workspace out, which the launch must notice where it needs one.
// `tile`, of KScaledLinear: one of kTiles, or empty for the launch's choice.
nb::tuple run_operator(const std::string& name, const Settings& s, const nb::dict& inputs, const nb::dict& attributes,
                       const std::map<std::string, std::string>& in_place, bool with_workspace,
                       const std::string& tile) {
  const OpDef& op = operator_named(name);
  Arguments node;
  node.attributes = default_attributes(op);
  for (const auto& [key, value] : attributes) {
    set_attribute(op, attribute_index(op, nb::cast<std::string>(key)), value_of(value), node.attributes);
  }
  test::begin(s);
  std::map<std::string, std::shared_ptr<AnyMemory>> memory;
  for (const auto& [key, value] : inputs) {
    const TensorDef& def = op.inputs.at(static_cast<size_t>(node.input_count));
    const auto given = nb::cast<std::string>(key);
    const auto array = nb::cast<AnyArray>(value);
    if (given != def.name || type_of(array) != def.type)
      throw std::invalid_argument("expected the input " + def.name + ", got " + given);
    std::vector<int64_t> shape;
    for (size_t d = 0; d < array.ndim(); ++d) shape.push_back(static_cast<int64_t>(array.shape(d)));
    match_shape(def, shape, node.sizes);
    const auto held = std::make_shared<AnyMemory>(s, def.type, shape, given);
    held->write(array.data());
    const bool is_written =
        std::any_of(in_place.begin(), in_place.end(), [&](const auto& pair) { return pair.second == given; });
    if (!is_written) held->protect();
    node.inputs[static_cast<size_t>(node.input_count++)] = held->data();
    memory[given] = held;
  }
  check_counts(op, static_cast<size_t>(node.input_count), op.outputs.size());
  check_limits(op, node);
  std::vector<std::shared_ptr<AnyMemory>> outputs;
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    const auto found = in_place.find(op.outputs[i].name);
    outputs.push_back(found != in_place.end()
                          ? memory.at(found->second)
                          : std::make_shared<AnyMemory>(s, output_type(op, i, node.attributes),
                                                        output_shape(op, i, node.sizes), op.outputs[i].name));
    node.outputs[i] = outputs.back()->data();
  }
  const CudaOperator& cuda = cuda_operator_of(op);
  const Device<float> workspace(s, cuda.workspace_bytes(node) / sizeof(float), "workspace");
  run([&](cuda::Stream stream) {
    if (!tile.empty()) return kscaled_linear_launch_tile(kscaled_linear_bind(node), test::choose(kTiles, tile), stream);
    return cuda.launch(node, stream, with_workspace ? workspace.data() : nullptr);
  });
  nb::list results;
  for (const auto& output : outputs) results.append(output->copy());
  return nb::tuple(results);
}

// The tile that a launch takes on a GPU of so many processors, or that of two launches in one.
std::string kscaled_linear_tile_of(int64_t rows, int32_t out_features, int32_t in_features, bool to_float,
                                   int processors, bool is_pair) {
  KScaledLinearParams p;
  p.rows = rows;
  p.out_features = out_features;
  p.in_features = in_features;
  float unused = 0;
  if (to_float) p.y_float = &unused;
  const KScaledLinearTile tile = is_pair ? kscaled_linear_pair_tile(p, processors) : kscaled_linear_tile(p, processors);
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

// Starts a program of one input and one output on a stream, or one of its steps.
void enqueue(test::Stream& stream, const CudaProgram& program, int64_t batch, const test::Memory& constants,
             const test::Memory& memory, const test::Memory& input, const test::Memory& output,
             std::optional<size_t> step) {
  if (static_cast<int64_t>(constants.bytes()) != program.constant_bytes() ||
      static_cast<int64_t>(memory.bytes()) != program.memory_bytes(batch))
    throw std::invalid_argument("sizes differ");
  CudaProgram::Placement placement;
  placement.constants = static_cast<const uint8_t*>(constants.data());
  placement.memory = static_cast<uint8_t*>(memory.data());
  placement.inputs = {input.data()};
  placement.outputs = {output.data()};
  stream.run([&program, batch, placement, step](cuda::Stream handle) {
    if (step.has_value()) {
      program.enqueue(batch, placement, handle, *step, *step + 1);
    } else {
      program.enqueue(batch, placement, handle);
    }
    return 0;
  });
}

// Probes

nb::object multiply(const Settings& s, const Int8s& a, const Int8s& b, const Int32s& c, bool with_ldmatrix) {
  test::begin(s);
  const Input<int8_t> a_on(s, "a", a), b_on(s, "b", b);
  const Input<int32_t> d(s, "d", c, true);
  run([&](cuda::Stream stream) {
    return probes::multiply(a_on.data(), b_on.data(), d.writable(), with_ldmatrix, stream);
  });
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
  run([&](cuda::Stream stream) {
    return probes::scale(x_on.data(), factor, y.data(), static_cast<int>(x.size()), stream);
  });
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
  test::bind_memory(m);
  bind_cuda_program(m);
  m.def("enqueue", enqueue, "stream"_a, "program"_a, "batch"_a, "constants"_a, "memory"_a, "input"_a, "output"_a,
        "step"_a = nb::none());
  m.def("run_operator", run_operator, "op"_a, "settings"_a, "inputs"_a, "attributes"_a,
        "in_place"_a = std::map<std::string, std::string>(), "with_workspace"_a = true, "tile"_a = "");
  m.def("kscaled_linear_tile", kscaled_linear_tile_of, "rows"_a, "out_features"_a, "in_features"_a, "to_float"_a,
        "processors"_a, "is_pair"_a = false);
  m.def("bidirectional_scan_workspace_bytes", scan_workspace_bytes, "batch"_a, "tokens"_a, "channels"_a, "states"_a);
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
