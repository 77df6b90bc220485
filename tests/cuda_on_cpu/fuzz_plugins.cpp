// vimtrt_fuzz_plugins [COUNT] [SEED]: random field collections and tensor descriptions, right ones and wrong ones,
// against every creator and plugin, on the CPU double of CUDA. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer, which look at the rest: a crash, an access outside, a leak. Prints how often what was
// reached; fails where valid calls were refused.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "plugins/bindings/plugin.h"
#include "tests/cuda_on_cpu/control.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void vimtrt_plugins_last_error(char* text, size_t size);

namespace {

using namespace nvinfer1;
using vimtrt::AttributeDef;
using vimtrt::OpDef;
using vimtrt::PluginCreator;
using vimtrt::TensorDef;

constexpr size_t kMostBytes = 1 << 16;  // of one tensor that is really there

struct Counts {
  int made = 0, refused = 0, configured = 0, shaped = 0, run = 0;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  bool once_in(int64_t times) { return between(1, times) == 1; }
  template <class T>
  T one_of(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(between(0, static_cast<int64_t>(choices.size()) - 1))];
  }
  int64_t strange_size() {
    return one_of<int64_t>(
        {-2, -1, 0, 1, 2, 3, 4, 5, 7, 255, 256, 257, 65536, 65537, INT32_MAX, INT64_C(1) << 31, INT64_MAX, INT64_MIN});
  }

 private:
  std::mt19937_64 engine_;
};

// A collection whose names and data lie in heap memory of just their sizes, so that a read past their ends is seen.
class Fields {
 public:
  Fields(Random& random, const OpDef& op, bool is_right) {
    for (const AttributeDef& attribute : op.attributes) {
      if (!is_right && random.once_in(4)) continue;
      PluginFieldType type = vimtrt::field_type(attribute.kind);
      std::string data = right_data(random, attribute);
      int32_t length = type == PluginFieldType::kCHAR ? static_cast<int32_t>(data.size()) : 1;
      const char* name = attribute.name.c_str();
      if (!is_right && random.once_in(2)) {
        if (random.once_in(3))
          name = random.one_of<const char*>({"", "x_offse", "x_offsets", "state", "out_type", "epsilon",
                                             "a name that is longer than any attribute of any operator has"});
        if (random.once_in(3))
          type = random.one_of<PluginFieldType>(
              {PluginFieldType::kINT32, PluginFieldType::kFLOAT32, PluginFieldType::kCHAR, PluginFieldType::kINT8,
               PluginFieldType::kINT64, PluginFieldType::kDIMS, PluginFieldType::kUNKNOWN});
        if (random.once_in(3))
          data = std::string(static_cast<size_t>(random.between(4, 80)), static_cast<char>(random.between(-128, 127)));
        length = std::min<int32_t>(
            static_cast<int32_t>(random.between(-2, 70)),
            static_cast<int32_t>(data.size() /
                                 (type == PluginFieldType::kCHAR || type == PluginFieldType::kINT8 ? 1 : 4)));
      }
      add(random.once_in(40) && !is_right ? nullptr : name, data, type, length, !is_right && random.once_in(20));
      if (!is_right && random.once_in(20)) add(name, data, type, length, false);
    }
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
    if (!is_right && random.once_in(50)) collection_.nbFields = -1;
  }
  const PluginFieldCollection* get() const { return &collection_; }

 private:
  static std::string right_data(Random& random, const AttributeDef& attribute) {
    std::string data(4, '\0');
    if (attribute.kind == AttributeDef::Kind::kInteger) {
      const auto value = static_cast<int32_t>(random.once_in(8) ? random.strange_size() : random.between(0, 3));
      std::memcpy(data.data(), &value, 4);
    } else if (attribute.kind == AttributeDef::Kind::kReal) {
      const float value = random.one_of<float>({1e-5f, 1e-5f, 1e-5f, 0.0f, 1.0f, -1.0f, 1e-40f, HUGE_VALF});
      std::memcpy(data.data(), &value, 4);
    } else {
      data = random.one_of(attribute.choices);
      if (random.once_in(2)) data.push_back('\0');
    }
    return data;
  }
  void add(const char* name, const std::string& data, PluginFieldType type, int32_t length, bool is_null) {
    char* copy = nullptr;
    if (name != nullptr) {
      memory_.push_back(std::make_unique<char[]>(std::strlen(name) + 1));
      copy = memory_.back().get();
      std::memcpy(copy, name, std::strlen(name) + 1);
    }
    memory_.push_back(std::make_unique<char[]>(data.size()));
    std::memcpy(memory_.back().get(), data.data(), data.size());
    fields_.emplace_back(copy, is_null ? nullptr : memory_.back().get(), type, length);
  }

  std::deque<std::unique_ptr<char[]>> memory_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_{};
};

struct Descriptions {
  std::vector<PluginTensorDesc> in, out;
};

Descriptions describe(Random& random, const OpDef& op, bool is_float, bool is_right) {
  int64_t sizes[26];
  for (int64_t& size : sizes) size = random.between(1, 9);
  sizes['N' - 'A'] = random.once_in(2) ? 8 : 16;
  sizes['X' - 'A'] = std::max(sizes['C' - 'A'], sizes['E' - 'A']) + 2 * sizes['N' - 'A'] + random.between(0, 5);
  sizes['Z' - 'A'] = sizes['E' - 'A'] + random.between(0, 5);
  sizes['R' - 'A'] = random.once_in(2) ? 1 : sizes['B' - 'A'];
  Descriptions all;
  const auto add = [&](std::vector<PluginTensorDesc>& list, const TensorDef& spec, DataType type) {
    PluginTensorDesc desc{};
    desc.type = type;
    desc.format = TensorFormat::kLINEAR;
    desc.dims.nbDims = static_cast<int32_t>(spec.shape.size());
    for (size_t i = 0; i < spec.shape.size(); ++i) {
      const vimtrt::Dimension& dimension = spec.shape[i];
      const int64_t size = dimension.letter == '\0' ? 1 : sizes[dimension.letter - 'A'];
      desc.dims.d[i] = size * dimension.times / dimension.parts;
    }
    list.push_back(desc);
  };
  const size_t inputs = op.inputs.size() - (is_float || random.once_in(2) ? op.optional : 0);
  for (size_t i = 0; i < inputs; ++i) add(all.in, op.inputs[i], vimtrt::data_type(op.inputs[i].type));
  for (const TensorDef& spec : op.outputs)
    add(all.out, spec, is_float ? DataType::kFLOAT : vimtrt::data_type(spec.type));
  for (int64_t wrong = is_right ? 0 : random.between(1, 3); wrong > 0; --wrong) {
    std::vector<PluginTensorDesc>& list = random.once_in(4) ? all.out : all.in;
    if (random.once_in(12)) {
      list.resize(static_cast<size_t>(random.between(0, static_cast<int64_t>(list.size()) + 2)));
      continue;
    }
    if (list.empty()) continue;
    PluginTensorDesc& desc = list[static_cast<size_t>(random.between(0, static_cast<int64_t>(list.size()) - 1))];
    switch (random.between(0, 3)) {
      case 0:
        desc.type = random.one_of<DataType>(
            {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32, DataType::kUINT8});
        break;
      case 1:
        desc.format = TensorFormat::kCHW32;
        break;
      case 2:
        desc.dims.nbDims = static_cast<int32_t>(random.between(-1, 8));
        break;
      default:
        desc.dims.d[random.between(0, 2)] = random.strange_size();
    }
  }
  return all;
}

// Bytes of a tensor, or kMostBytes + 1 where it is not one that could be there.
size_t bytes_of(const PluginTensorDesc& desc) {
  size_t bytes = desc.type == DataType::kINT8 || desc.type == DataType::kUINT8 ? 1 : 4;
  for (int32_t i = 0; i < desc.dims.nbDims; ++i) {
    if (desc.dims.d[i] < 0 || desc.dims.d[i] > static_cast<int64_t>(kMostBytes)) return kMostBytes + 1;
    bytes *= static_cast<size_t>(desc.dims.d[i]);
    if (bytes > kMostBytes) return kMostBytes + 1;
  }
  return bytes;
}

struct Expression final : IDimensionExpr {
  struct Impl final : apiv::VDimensionExpr {
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return 1; }
    bool isSizeTensor() const override { return false; }
  };
  Expression() { mImpl = &impl; }
  ~Expression() noexcept override = default;
  Impl impl;
};

struct ExpressionBuilder final : IExprBuilder {
  struct Impl final : apiv::VExprBuilder {
    const IDimensionExpr* constant(int64_t) override { return &one; }
    const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) override {
      return &one;
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
      return &one;
    }
    Expression one;
  };
  ExpressionBuilder() { mImpl = &impl; }
  ~ExpressionBuilder() noexcept override = default;
  Impl impl;
};

int32_t count_of(const std::vector<PluginTensorDesc>& list) { return static_cast<int32_t>(list.size()); }

void call_build(IPluginV3OneBuild* build, const Descriptions& all, Counts& counts) {
  std::vector<DynamicPluginTensorDesc> in, out;
  std::vector<DataType> types;
  std::vector<DimsExprs> shapes;
  ExpressionBuilder builder;
  const auto widen = [](const PluginTensorDesc& desc) {
    DynamicPluginTensorDesc wide{};
    wide.desc = desc;
    wide.min = wide.max = wide.opt = desc.dims;
    return wide;
  };
  for (const PluginTensorDesc& desc : all.in) {
    in.push_back(widen(desc));
    types.push_back(desc.type);
    DimsExprs expressions{};
    expressions.nbDims = desc.dims.nbDims;
    std::fill(std::begin(expressions.d), std::end(expressions.d), &builder.impl.one);
    shapes.push_back(expressions);
  }
  for (const PluginTensorDesc& desc : all.out) out.push_back(widen(desc));
  std::vector<DataType> out_types(all.out.size());
  std::vector<DimsExprs> out_shapes(all.out.size());
  build->getOutputDataTypes(out_types.data(), count_of(all.out), types.data(), count_of(all.in));
  build->getOutputShapes(shapes.data(), count_of(all.in), nullptr, 0, out_shapes.data(), count_of(all.out), builder);
  std::vector<DynamicPluginTensorDesc> both = in;
  both.insert(both.end(), out.begin(), out.end());
  for (int32_t i = -1; i <= static_cast<int32_t>(both.size()); ++i) {
    build->supportsFormatCombination(i, both.data(), count_of(all.in), count_of(all.out));
  }
  build->getWorkspaceSize(in.data(), count_of(all.in), out.data(), count_of(all.out));
  if (build->configurePlugin(in.data(), count_of(all.in), out.data(), count_of(all.out)) == 0) ++counts.configured;
}

void call_runtime(Random& random, IPluginV3OneBuild* build, IPluginV3OneRuntime* runtime, const Descriptions& all,
                  Counts& counts) {
  const bool is_shaped =
      runtime->onShapeChange(all.in.data(), count_of(all.in), all.out.data(), count_of(all.out)) == 0;
  counts.shaped += is_shaped ? 1 : 0;
  // Memory of just the right sizes. Where sizes are out of reach nothing is there, and the call must be refused.
  std::vector<DynamicPluginTensorDesc> in, out;
  std::vector<const void*> inputs;
  std::vector<void*> memory, outputs;
  bool is_real = is_shaped;
  for (const auto* list : {&all.in, &all.out}) {
    for (const PluginTensorDesc& desc : *list) is_real = is_real && bytes_of(desc) <= kMostBytes;
  }
  for (const auto* list : {&all.in, &all.out}) {
    for (const PluginTensorDesc& desc : *list) {
      const size_t bytes = is_real ? bytes_of(desc) : 0;
      void* data = is_real ? vimtrt::cuda_on_cpu::device_allocate(bytes, 16, "a tensor") : nullptr;
      if (data != nullptr) {
        std::memset(data, desc.type == DataType::kINT32 ? 0 : static_cast<int>(random.between(0, 255)), bytes);
        if (list == &all.in) vimtrt::cuda_on_cpu::device_protect(data);
        memory.push_back(data);
      }
      (list == &all.in ? inputs.push_back(data) : outputs.push_back(data));
      DynamicPluginTensorDesc wide{};
      wide.desc = desc;
      wide.max = desc.dims;
      (list == &all.in ? in : out).push_back(wide);
    }
  }
  inputs.resize(std::max<size_t>(inputs.size(), 20), nullptr);
  outputs.resize(std::max<size_t>(outputs.size(), 20), nullptr);
  std::vector<PluginTensorDesc> in_descs = all.in,
                                out_descs =
                                    all.out;  // as many as a plugin may look at: it is not told how many there are
  in_descs.resize(20);
  out_descs.resize(20);
  if (is_real && random.once_in(10)) inputs[static_cast<size_t>(random.between(0, count_of(all.in) - 1))] = nullptr;
  const size_t workspace_bytes =
      is_real ? build->getWorkspaceSize(in.data(), count_of(all.in), out.data(), count_of(all.out)) : 0;
  void* workspace =
      workspace_bytes > 0 ? vimtrt::cuda_on_cpu::device_allocate(workspace_bytes, 16, "the workspace") : nullptr;
  if (runtime->enqueue(in_descs.data(), out_descs.data(), inputs.data(), outputs.data(), workspace, nullptr) == 0)
    ++counts.run;
  for (void* each : memory) vimtrt::cuda_on_cpu::device_free(each);
  if (workspace != nullptr) vimtrt::cuda_on_cpu::device_free(workspace);
}

void one_round(Random& random, Counts& counts) {
  int32_t count = 0;
  IPluginCreatorInterface* const* creators = getCreators(count);
  auto* creator = static_cast<PluginCreator*>(creators[random.between(0, count - 1)]);
  const OpDef& op = creator->op();
  const bool fields_are_right = random.once_in(2), tensors_are_right = random.once_in(3);
  const Fields fields(random, op, fields_are_right);
  const auto phase = random.once_in(2) ? TensorRTPhase::kBUILD : TensorRTPhase::kRUNTIME;
  std::unique_ptr<IPluginV3> plugin(
      creator->createPlugin("a node", random.once_in(50) ? nullptr : fields.get(), phase));
  char error[64];
  vimtrt_plugins_last_error(error, static_cast<size_t>(random.between(0, sizeof(error))));
  if (plugin == nullptr) {
    ++counts.refused;
    if (fields_are_right) {
      std::fprintf(stderr, "%s refused right fields: %s\n", op.name.c_str(), vimtrt::last_error().c_str());
      std::exit(1);
    }
    return;
  }
  ++counts.made;
  if (random.once_in(2)) plugin.reset(plugin->clone());
  auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
  auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  const PluginFieldCollection* own = runtime->getFieldsToSerialize();
  bool is_float = false;
  for (int32_t i = 0; i < own->nbFields; ++i) {
    is_float |= own->fields[i].type == PluginFieldType::kCHAR &&
                std::strcmp(static_cast<const char*>(own->fields[i].data), "float32") == 0;
  }
  const Descriptions all = describe(random, op, is_float, tensors_are_right);
  call_build(build, all, counts);
  const std::unique_ptr<IPluginV3> restored(
      creator->createPlugin("a node", runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
  if (restored == nullptr) {
    std::fprintf(stderr, "%s refused its own fields: %s\n", op.name.c_str(), vimtrt::last_error().c_str());
    std::exit(1);
  }
  auto* restored_runtime =
      static_cast<IPluginV3OneRuntime*>(restored->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  const std::unique_ptr<IPluginV3> attached(restored_runtime->attachToContext(nullptr));
  plugin.reset(random.once_in(2) ? restored->clone() : attached->clone());
  build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
  runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  call_runtime(random, build, runtime, all, counts);
}

}  // namespace

int main(int argc, char** argv) {
  const long rounds = argc > 1 ? std::atol(argv[1]) : 10000;
  const long seed = argc > 2 ? std::atol(argv[2]) : 0;
  vimtrt::cuda_on_cpu::Settings settings;
  settings.watch = false;  // the sanitizers look instead
  vimtrt::cuda_on_cpu::configure(settings);
  Counts counts;
  for (long i = 0; i < rounds; ++i) {
    Random random(static_cast<uint64_t>(seed + i));
    one_round(random, counts);
  }
  std::printf("rounds %ld made %d refused %d configured %d shaped %d run %d\n", rounds, counts.made, counts.refused,
              counts.configured, counts.shaped, counts.run);
  return 0;
}
