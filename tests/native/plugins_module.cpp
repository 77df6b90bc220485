// The plugin library for Python, on the CPU double (vimtrt_plugins_on_cpu) or on a GPU (vimtrt_plugins_on_gpu); see
// tests/support/plugin_run.py. It plays TensorRT's part: finds creators through getCreators, makes plugins of fields,
// asks for types, shapes and formats, configures, serializes, makes them anew for the runtime phase, copies them, and
// enqueues on device memory.
#include <NvInferRuntime.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "plugins/bindings/plugin.h"
#include "plugins/executor/copy_cuda.h"
#include "tests/native/device.h"
#include "tests/native/python_device.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
extern "C" void vimtrt_plugins_last_error(char* text, size_t size);
extern "C" const char* vimtrt_plugins_version();

namespace nb = nanobind;
using namespace nb::literals;

namespace vimtrt {
namespace {

using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using test::Memory;
using test::Settings;

template <class Kind>
using Names = std::vector<std::pair<const char*, Kind>>;
const Names<DataType> kTypes = {{"int8", DataType::kINT8},
                                {"float32", DataType::kFLOAT},
                                {"int32", DataType::kINT32},
                                {"float16", DataType::kHALF},
                                {"uint8", DataType::kUINT8}};
const Names<PluginFieldType> kFieldTypes = {
    {"int32", PluginFieldType::kINT32}, {"float32", PluginFieldType::kFLOAT32}, {"char", PluginFieldType::kCHAR},
    {"int8", PluginFieldType::kINT8},   {"float64", PluginFieldType::kFLOAT64}, {"unknown", PluginFieldType::kUNKNOWN}};
const Names<TensorFormat> kFormats = {
    {"linear", TensorFormat::kLINEAR}, {"chw4", TensorFormat::kCHW4}, {"hwc8", TensorFormat::kHWC8}};

template <class Kind>
Kind named(const Names<Kind>& names, const std::string& name) {
  for (const auto& [text, kind] : names) {
    if (name == text) return kind;
  }
  throw std::invalid_argument("there is no " + name);
}

template <class Kind>
std::string name_of(const Names<Kind>& names, Kind kind) {
  for (const auto& [text, known] : names) {
    if (kind == known) return text;
  }
  return "unknown";
}

constexpr size_t kMostOutputBytes = size_t{1} << 28;
constexpr int kNotStarted = 999;  // cudaErrorUnknown: last_error() knows more

size_t bytes_of(DataType type) { return type == DataType::kINT8 ? 1 : 4; }

// Type, shape with -1 for what is not known, and the largest shape where the first is not known.
using Shape = std::vector<int64_t>;
using Tensor = std::tuple<std::string, Shape, Shape>;
using Field = std::tuple<std::string, std::string, nb::bytes, int>;

nvinfer1::Dims dims_of(const Shape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<int32_t>(shape.size());
  if (shape.size() > nvinfer1::Dims::MAX_DIMS) throw std::invalid_argument("too many dimensions");
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

PluginTensorDesc description(const std::string& type, const Shape& shape, const std::string& format = "linear") {
  PluginTensorDesc desc{};
  desc.type = named(kTypes, type);
  desc.dims = dims_of(shape);
  desc.format = named(kFormats, format);
  return desc;
}

nvinfer1::DynamicPluginTensorDesc dynamic(const Tensor& tensor, const std::string& format = "linear") {
  const auto& [type, shape, largest] = tensor;
  nvinfer1::DynamicPluginTensorDesc desc{};
  desc.desc = description(type, shape, format);
  desc.min = desc.opt = desc.max = dims_of(largest);
  return desc;
}

// Expressions over sizes, as the builder has them.
struct Expression final : nvinfer1::IDimensionExpr {
  struct Impl final : nvinfer1::apiv::VDimensionExpr {
    explicit Impl(int64_t v) : value(v) {}
    bool isConstant() const override { return value >= 0; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value;
  };
  explicit Expression(int64_t value) : impl(value) { mImpl = &impl; }
  ~Expression() noexcept override = default;
  Impl impl;
};

struct ExpressionBuilder final : nvinfer1::IExprBuilder {
  struct Impl final : nvinfer1::apiv::VExprBuilder {
    const nvinfer1::IDimensionExpr* constant(int64_t value) override { return &all.emplace_back(value); }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation, const nvinfer1::IDimensionExpr&,
                                              const nvinfer1::IDimensionExpr&) override {
      return nullptr;
    }
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      return nullptr;
    }
    std::deque<Expression> all;  // stay where they are
  };
  ExpressionBuilder() { mImpl = &impl; }
  ~ExpressionBuilder() noexcept override = default;
  Impl impl;
};

std::vector<nvinfer1::IPluginCreatorV3One*> creators() {
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* all = getCreators(count);
  std::vector<nvinfer1::IPluginCreatorV3One*> found;
  for (int32_t i = 0; i < count; ++i) {
    const std::string kind = all[i]->getInterfaceInfo().kind;
    if (kind != "PLUGIN CREATOR_V3ONE") throw std::runtime_error("a creator of another kind: " + kind);
    found.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(all[i]));
  }
  return found;
}

std::string exported_last_error() {
  char text[512];
  vimtrt_plugins_last_error(text, sizeof(text));
  return text;
}

class PythonPlugin {
 public:
  explicit PythonPlugin(nvinfer1::IPluginV3* plugin) : plugin_(plugin) {
    core_ = capability<nvinfer1::IPluginV3OneCore>(nvinfer1::PluginCapabilityType::kCORE, "PLUGIN_V3ONE_CORE");
    build_ = capability<nvinfer1::IPluginV3OneBuild>(nvinfer1::PluginCapabilityType::kBUILD, "PLUGIN_V3ONE_BUILD");
    runtime_ =
        capability<nvinfer1::IPluginV3OneRuntime>(nvinfer1::PluginCapabilityType::kRUNTIME, "PLUGIN_V3ONE_RUNTIME");
  }

  std::tuple<std::string, std::string, std::string> identity() const {
    return {core_->getPluginName(), core_->getPluginVersion(), core_->getPluginNamespace()};
  }
  bool has_capability(int type) const {
    return plugin_->getCapabilityInterface(static_cast<nvinfer1::PluginCapabilityType>(type)) != nullptr;
  }

  std::optional<std::vector<std::string>> output_types(const std::vector<std::string>& inputs, int outputs) const {
    std::vector<DataType> in, out(static_cast<size_t>(outputs), DataType::kBOOL);
    for (const std::string& type : inputs) in.push_back(named(kTypes, type));
    if (build_->getOutputDataTypes(out.data(), outputs, in.data(), static_cast<int32_t>(in.size())) != 0)
      return std::nullopt;
    std::vector<std::string> names;
    for (const DataType type : out) names.push_back(name_of(kTypes, type));
    return names;
  }

  std::optional<std::vector<Shape>> output_shapes(const std::vector<Shape>& inputs, int outputs) const {
    ExpressionBuilder builder;
    std::vector<nvinfer1::DimsExprs> in, out(static_cast<size_t>(outputs));
    for (const Shape& shape : inputs) {
      nvinfer1::DimsExprs dims{};
      dims.nbDims = static_cast<int32_t>(shape.size());
      for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = builder.constant(shape[i]);
      in.push_back(dims);
    }
    if (build_->getOutputShapes(in.data(), static_cast<int32_t>(in.size()), nullptr, 0, out.data(), outputs, builder) !=
        0)
      return std::nullopt;
    std::vector<Shape> shapes;
    for (const nvinfer1::DimsExprs& dims : out) {
      Shape shape;
      for (int32_t i = 0; i < dims.nbDims; ++i) shape.push_back(dims.d[i]->getConstantValue());
      shapes.push_back(shape);
    }
    return shapes;
  }

  bool supports(int position, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
                const std::string& format) const {
    std::vector<nvinfer1::DynamicPluginTensorDesc> all;
    for (const auto* list : {&inputs, &outputs}) {
      for (const Tensor& tensor : *list)
        all.push_back(dynamic(tensor, static_cast<int>(all.size()) == position ? format : "linear"));
    }
    return build_->supportsFormatCombination(position, all.data(), static_cast<int32_t>(inputs.size()),
                                             static_cast<int32_t>(outputs.size()));
  }

  int configure(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) const {
    const auto in = all_dynamic(inputs), out = all_dynamic(outputs);
    return build_->configurePlugin(in.data(), static_cast<int32_t>(in.size()), out.data(),
                                   static_cast<int32_t>(out.size()));
  }

  size_t workspace_bytes(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) const {
    const auto in = all_dynamic(inputs), out = all_dynamic(outputs);
    return build_->getWorkspaceSize(in.data(), static_cast<int32_t>(in.size()), out.data(),
                                    static_cast<int32_t>(out.size()));
  }

  std::vector<Field> fields() const {
    std::vector<Field> found;
    const nvinfer1::PluginFieldCollection* all = runtime_->getFieldsToSerialize();
    for (int32_t i = 0; i < all->nbFields; ++i) {
      const nvinfer1::PluginField& field = all->fields[i];
      const size_t bytes = static_cast<size_t>(field.length) * (field.type == PluginFieldType::kCHAR ? 1 : 4);
      found.emplace_back(field.name, name_of(kFieldTypes, field.type),
                         nb::bytes(static_cast<const char*>(field.data), bytes), field.length);
    }
    return found;
  }

  PythonPlugin* clone() const { return new PythonPlugin(plugin_->clone()); }  // Python owns what is returned
  PythonPlugin* attach() const { return new PythonPlugin(runtime_->attachToContext(nullptr)); }

  int on_shape_change(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) const {
    const auto in = all_static(inputs), out = all_static(outputs);
    return runtime_->onShapeChange(in.data(), static_cast<int32_t>(in.size()), out.data(),
                                   static_cast<int32_t>(out.size()));
  }

  // Returns the status and the outputs' bytes. `without` leaves out the address of that input or, from the count of
  // inputs on, output.
  std::pair<int, std::vector<nb::bytes>> enqueue(const Settings& settings,
                                                 const std::vector<nb::ndarray<nb::ro, nb::c_contig>>& arrays,
                                                 const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
                                                 size_t workspace_bytes, int without) const {
    test::begin(settings);
    const auto in = all_static(inputs), out = all_static(outputs);
    std::deque<Memory> memory;
    std::vector<const void*> from;
    std::vector<void*> to;
    for (const auto& array : arrays) {
      memory.emplace_back(settings, array.nbytes(), array.itemsize(), "an input");
      memory.back().write(array.data());
      memory.back().protect();
      from.push_back(memory.back().data());
    }
    const size_t first_output = memory.size();
    for (const PluginTensorDesc& desc : out) {
      size_t bytes = bytes_of(desc.type);
      for (int32_t i = 0; i < desc.dims.nbDims; ++i) bytes *= static_cast<size_t>(std::max<int64_t>(desc.dims.d[i], 0));
      if (bytes > kMostOutputBytes) bytes = 0;  // a shape that must be refused
      memory.emplace_back(settings, bytes, bytes_of(desc.type), "an output");
      to.push_back(memory.back().data());
    }
    if (without >= 0)
      (static_cast<size_t>(without) < from.size() ? from[static_cast<size_t>(without)]
                                                  : (const void*&)to[static_cast<size_t>(without) - from.size()]) =
          nullptr;
    const Memory workspace(settings, workspace_bytes, 16, "the workspace");
    static test::Stream stream;
    int status = 0;
    stream.run([&](cuda::Stream handle) {
      status = runtime_->enqueue(in.data(), out.data(), from.data(), to.data(),
                                 workspace_bytes > 0 ? workspace.data() : nullptr, handle);
      return 0;
    });
    if (status != 0) return {status, {}};
    test::finish(0);
    std::vector<nb::bytes> results;
    for (size_t i = first_output; i < memory.size(); ++i) {
      std::vector<char> bytes(memory[i].bytes());
      memory[i].read(bytes.data());
      results.emplace_back(bytes.data(), bytes.size());
    }
    return {status, results};
  }

  // Starts the plugin on memory that is there already, or records it where the stream captures. The memory must outlive
  // what was recorded.
  void enqueue_on(test::Stream& stream, const std::vector<Memory*>& inputs, const std::vector<Memory*>& outputs,
                  const std::vector<Tensor>& input_tensors, const std::vector<Tensor>& output_tensors,
                  Memory* workspace) const {
    std::vector<const void*> from;
    std::vector<void*> to;
    for (const Memory* memory : inputs) from.push_back(memory->data());
    for (const Memory* memory : outputs) to.push_back(memory->data());
    void* scratch = workspace != nullptr ? workspace->data() : nullptr;
    stream.run(
        [=, runtime = runtime_, in = all_static(input_tensors), out = all_static(output_tensors)](cuda::Stream s) {
          test::set_roles(inputs, outputs);
          return runtime->enqueue(in.data(), out.data(), from.data(), to.data(), scratch, s) == 0 ? 0 : kNotStarted;
        });
  }

 private:
  template <class Interface>
  Interface* capability(nvinfer1::PluginCapabilityType type, const std::string& kind) const {
    nvinfer1::IPluginCapability* found = plugin_->getCapabilityInterface(type);
    if (found == nullptr || found->getInterfaceInfo().kind != kind) throw std::runtime_error("no capability " + kind);
    return static_cast<Interface*>(found);
  }
  static std::vector<nvinfer1::DynamicPluginTensorDesc> all_dynamic(const std::vector<Tensor>& tensors) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> all;
    for (const Tensor& tensor : tensors) all.push_back(dynamic(tensor));
    return all;
  }
  static std::vector<PluginTensorDesc> all_static(const std::vector<Tensor>& tensors) {
    std::vector<PluginTensorDesc> all;
    for (const Tensor& tensor : tensors) all.push_back(description(std::get<0>(tensor), std::get<1>(tensor)));
    return all;
  }

  std::unique_ptr<nvinfer1::IPluginV3> plugin_;
  nvinfer1::IPluginV3OneCore* core_ = nullptr;
  nvinfer1::IPluginV3OneBuild* build_ = nullptr;
  nvinfer1::IPluginV3OneRuntime* runtime_ = nullptr;
};

PythonPlugin* create_from(const std::string& name, const nvinfer1::PluginFieldCollection* fields,
                          const std::string& phase) {
  for (nvinfer1::IPluginCreatorV3One* creator : creators()) {
    if (name != creator->getPluginName()) continue;
    const auto which = phase == "build" ? nvinfer1::TensorRTPhase::kBUILD : nvinfer1::TensorRTPhase::kRUNTIME;
    nvinfer1::IPluginV3* plugin = creator->createPlugin(name.c_str(), fields, which);
    return plugin == nullptr ? nullptr : new PythonPlugin(plugin);
  }
  throw std::invalid_argument("no creator of " + name);
}

// A plugin of fields (name, type, data, length), or None.
PythonPlugin* create(const std::string& name, const std::vector<Field>& fields, const std::string& phase) {
  std::vector<nvinfer1::PluginField> all;
  for (const auto& [field, type, data, length] : fields) {
    all.emplace_back(field.c_str(), data.size() > 0 ? data.c_str() : nullptr, named(kFieldTypes, type), length);
  }
  const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(all.size()), all.data()};
  return create_from(name, &collection, phase);
}

// A plugin of no collection (-1) or of one that says it has fields and has none.
PythonPlugin* create_from_nothing(const std::string& name, int fields) {
  const nvinfer1::PluginFieldCollection collection{fields, nullptr};
  return create_from(name, fields == -1 ? nullptr : &collection, "build");
}

// Copies between operators; sizes are checked, since a wrong one would read beside the memory.
void strided_copy(test::Stream& stream, Memory& x, Memory& y, size_t element_bytes, const Shape& shape,
                  const Shape& strides) {
  int64_t last = 0, count = 1;
  for (size_t d = 0; d < shape.size() && d < strides.size(); ++d) {
    last += (shape[d] - 1) * strides[d];
    count *= shape[d];
  }
  if (static_cast<size_t>(count) * element_bytes != y.bytes() ||
      (count > 0 && (static_cast<size_t>(last) + 1) * element_bytes > x.bytes()))
    throw std::invalid_argument("sizes differ");
  const StridedCopy copy = simplify({static_cast<int64_t>(element_bytes), shape, strides, 0});
  stream.run([=, from = &x, to = &y](cuda::Stream s) {
    test::set_roles({from}, {to});
    return strided_copy_launch(copy, 1, 0, static_cast<const uint8_t*>(from->data()), static_cast<uint8_t*>(to->data()),
                               s);
  });
}

void gather(test::Stream& stream, Memory& x, Memory& y, Memory& indices, int64_t outer, int64_t length, int64_t count,
            int64_t inner_bytes) {
  if (x.bytes() != static_cast<size_t>(outer * length * inner_bytes) ||
      y.bytes() != static_cast<size_t>(outer * count * inner_bytes) ||
      indices.bytes() != static_cast<size_t>(count) * sizeof(int64_t))
    throw std::invalid_argument("sizes differ");
  stream.run([=, from = &x, to = &y, of = &indices](cuda::Stream s) {
    test::set_roles({from, of}, {to});
    return gather_launch(outer, length, inner_bytes, static_cast<const int64_t*>(of->data()), count,
                         static_cast<const uint8_t*>(from->data()), static_cast<uint8_t*>(to->data()), s);
  });
}

// Every creator: name -> version, namespace, field types.
nb::dict describe() {
  nb::dict all;
  for (nvinfer1::IPluginCreatorV3One* creator : creators()) {
    nb::dict one, fields;
    const nvinfer1::PluginFieldCollection* names = creator->getFieldNames();
    for (int32_t i = 0; i < names->nbFields; ++i)
      fields[names->fields[i].name] = name_of(kFieldTypes, names->fields[i].type);
    one["version"] = creator->getPluginVersion();
    one["namespace"] = creator->getPluginNamespace();
    one["fields"] = fields;
    all[creator->getPluginName()] = one;
  }
  return all;
}

}  // namespace

NB_MODULE(VIMTRT_MODULE, m) {
  test::bind_device(m);
  test::bind_memory(m);
  m.def("describe", describe);
  m.def("create", create, "name"_a, "fields"_a, "phase"_a = "build");
  m.def("create_from_nothing", create_from_nothing, "name"_a, "fields"_a);
  m.def("last_error", exported_last_error);
  m.def("kernel_error", test::last_error);
  m.def("version", vimtrt_plugins_version);
  m.def("set_logger_finder", [] { setLoggerFinder(nullptr); });
  nb::class_<PythonPlugin>(m, "Plugin")
      .def_prop_ro("identity", &PythonPlugin::identity)
      .def("has_capability", &PythonPlugin::has_capability)
      .def("output_types", &PythonPlugin::output_types, "inputs"_a, "outputs"_a)
      .def("output_shapes", &PythonPlugin::output_shapes, "inputs"_a, "outputs"_a)
      .def("supports", &PythonPlugin::supports, "position"_a, "inputs"_a, "outputs"_a, "format"_a = "linear")
      .def("configure", &PythonPlugin::configure, "inputs"_a, "outputs"_a)
      .def("workspace_bytes", &PythonPlugin::workspace_bytes, "inputs"_a, "outputs"_a)
      .def("fields", &PythonPlugin::fields)
      .def("clone", &PythonPlugin::clone)
      .def("attach", &PythonPlugin::attach)
      .def("on_shape_change", &PythonPlugin::on_shape_change, "inputs"_a, "outputs"_a)
      .def("enqueue", &PythonPlugin::enqueue, "settings"_a, "arrays"_a, "inputs"_a, "outputs"_a,
           "workspace_bytes"_a = 0, "without"_a = -1)
      .def("enqueue_on", &PythonPlugin::enqueue_on, "stream"_a, "inputs"_a, "outputs"_a, "input_tensors"_a,
           "output_tensors"_a, "workspace"_a = nb::none());
  m.def("strided_copy", strided_copy, "stream"_a, "x"_a, "y"_a, "element_bytes"_a, "shape"_a, "strides"_a);
  m.def("gather", gather, "stream"_a, "x"_a, "y"_a, "indices"_a, "outer"_a, "length"_a, "count"_a, "inner_bytes"_a);
}

}  // namespace vimtrt
