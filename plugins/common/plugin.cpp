#include "plugins/common/plugin.h"

#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>

namespace vimtrt {
namespace {

using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = -1;
constexpr int32_t kMaxTextBytes = 64;
constexpr char kBatch = 'B', kResidualBatch = 'R';  // R is B, or 1 for one residual shared by all images

std::mutex g_error_mutex;
std::string g_error;

// What `body` returns, or `failure` where it throws. Nothing gets past it: TensorRT's methods are noexcept, and an exception would end the
// process.
template <class Result, class Body>
Result guarded(const char* who, Result failure, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    set_last_error(error.what());
  } catch (...) {
    set_last_error(who);
  }
  return failure;
}

const char* type_name(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kINT8:
      return "int8";
    case DataType::kINT32:
      return "int32";
    default:
      return "another type";
  }
}

const char* field_type_name(PluginFieldType type) {
  return type == PluginFieldType::kINT32 ? "one int32" : type == PluginFieldType::kFLOAT32 ? "one float32" : "text";
}

std::string size_name(int32_t spec) { return spec < 0 ? std::string(1, static_cast<char>(-spec)) : std::to_string(spec); }

}  // namespace

std::string last_error() {
  const std::lock_guard<std::mutex> lock(g_error_mutex);
  return g_error;
}

void set_last_error(const std::string& text) noexcept {
  try {
    const std::lock_guard<std::mutex> lock(g_error_mutex);
    g_error = text;
  } catch (...) {  // no memory for the sentence: the status alone remains
  }
}

// Attributes

Plugin::Plugin(const Schema& schema, const PluginFieldCollection* fields) : mSchema(schema) {
  for (const Attribute& attribute : schema.attributes) {
    Value value;
    value.integer = attribute.integer;
    value.real = attribute.real;
    if (!attribute.choices.empty()) value.text = attribute.choices.front();
    mValues.push_back(value);
  }
  if (fields == nullptr) return;
  if (fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr))
    throw PluginError(std::string(schema.name) + ": no fields");
  std::vector<bool> seen(mValues.size(), false);
  for (int32_t i = 0; i < fields->nbFields; ++i) read(fields->fields[i], seen);
}

void Plugin::read(const PluginField& field, std::vector<bool>& seen) {
  const std::string who = mSchema.name;
  if (field.name == nullptr) throw PluginError(who + ": a field without a name");
  for (size_t i = 0; i < mValues.size(); ++i) {
    const Attribute& attribute = mSchema.attributes[i];
    if (std::strcmp(attribute.name, field.name) != 0) continue;
    const std::string where = who + ", attribute " + attribute.name + ": ";
    if (seen[i]) throw PluginError(where + "given twice");
    seen[i] = true;
    const bool is_text = attribute.type == PluginFieldType::kCHAR;
    if (field.type != attribute.type || field.data == nullptr || field.length < 1 || field.length > (is_text ? kMaxTextBytes : 1)) {
      throw PluginError(where + "must be " + field_type_name(attribute.type));
    }
    if (attribute.type == PluginFieldType::kINT32) {
      std::memcpy(&mValues[i].integer, field.data, sizeof(int32_t));
      return;
    }
    if (attribute.type == PluginFieldType::kFLOAT32) {
      std::memcpy(&mValues[i].real, field.data, sizeof(float));
      return;
    }
    // With or without the zero at its end.
    const char* characters = static_cast<const char*>(field.data);
    mValues[i].text.assign(characters, strnlen(characters, static_cast<size_t>(field.length)));
    std::string known;
    for (const char* choice : attribute.choices) {
      if (mValues[i].text == choice) return;
      known += (known.empty() ? "" : " or ") + std::string(choice);
    }
    throw PluginError(where + "must be " + known);
  }
  throw PluginError(who + ": there is no attribute " + std::string(field.name, strnlen(field.name, kMaxTextBytes)));
}

const PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return guarded<const PluginFieldCollection*>(mSchema.name, nullptr, [&] {
    mFields.clear();
    for (size_t i = 0; i < mValues.size(); ++i) {
      const Attribute& attribute = mSchema.attributes[i];
      const Value& value = mValues[i];
      if (attribute.type == PluginFieldType::kINT32) {
        mFields.emplace_back(attribute.name, &value.integer, attribute.type, 1);
      } else if (attribute.type == PluginFieldType::kFLOAT32) {
        mFields.emplace_back(attribute.name, &value.real, attribute.type, 1);
      } else {
        mFields.emplace_back(attribute.name, value.text.c_str(), attribute.type, static_cast<int32_t>(value.text.size() + 1));
      }
    }
    mCollection.nbFields = static_cast<int32_t>(mFields.size());
    mCollection.fields = mFields.data();
    return &mCollection;
  });
}

// Shapes and types

void Plugin::check_counts(int32_t inputs, int32_t outputs) const {
  const auto all = static_cast<int32_t>(mSchema.inputs.size()), required = all - mSchema.optional;
  if ((inputs != all && inputs != required) || outputs != getNbOutputs()) {
    throw PluginError(std::string(mSchema.name) + " takes " + std::to_string(required) +
                      (mSchema.optional > 0 ? " or " + std::to_string(all) : std::string()) + " inputs and has " +
                      std::to_string(getNbOutputs()) + " outputs, got " + std::to_string(inputs) + " and " + std::to_string(outputs));
  }
}

void Plugin::check_type(const TensorSpec& spec, DataType expected, const PluginTensorDesc& got) const {
  if (got.type != expected) {
    throw PluginError(std::string(mSchema.name) + ", " + spec.name + ": expected " + type_name(expected) + ", got " + type_name(got.type));
  }
  if (got.format != nvinfer1::TensorFormat::kLINEAR) {
    throw PluginError(std::string(mSchema.name) + ", " + spec.name + ": expected the linear format");
  }
}

// Takes sizes that are seen for the first time and checks the others. Every size but the batch fits into int32.
void Plugin::bind(const TensorSpec& spec, const Dims& dims, Sizes& sizes) const {
  const std::string where = std::string(mSchema.name) + ", " + spec.name + ": ";
  if (dims.nbDims != static_cast<int32_t>(spec.shape.size())) {
    throw PluginError(where + "expected " + std::to_string(spec.shape.size()) + " dimensions, got " + std::to_string(dims.nbDims));
  }
  for (size_t i = 0; i < spec.shape.size(); ++i) {
    const int64_t got = dims.d[i];
    const char name = spec.shape[i] < 0 ? static_cast<char>(-spec.shape[i]) : '\0';
    const bool is_batch = name == kBatch || name == kResidualBatch;
    int64_t expected = spec.shape[i];
    if (name != '\0') {
      if (sizes[name] == Sizes::kUnset) sizes[name] = got;
      expected = sizes[name];
    }
    const bool is_possible = is_batch ? got >= Sizes::kUnknown : got >= 1;
    if (got != expected || !is_possible || got > std::numeric_limits<int32_t>::max()) {
      throw PluginError(where + size_name(spec.shape[i]) + " cannot be " + std::to_string(got) +
                        (got != expected ? ", expected " + std::to_string(expected) : std::string()));
    }
  }
}

void Plugin::check_columns(size_t offset_attribute, int64_t columns, int64_t available) const {
  const int64_t offset = integer(offset_attribute);
  if (offset < 0 || offset + columns > available) {
    throw error(mSchema.attributes[offset_attribute].name + ("=" + std::to_string(offset)) + " and " + std::to_string(columns) +
                " columns do not fit into " + std::to_string(available));
  }
}

Sizes Plugin::sizes_of(const PluginTensorDesc* in, int32_t nbInputs, const PluginTensorDesc* out, int32_t nbOutputs) const {
  check_counts(nbInputs, nbOutputs);
  if (in == nullptr || out == nullptr) throw error("no descriptions");
  Sizes sizes;
  for (int32_t i = 0; i < nbInputs; ++i) {
    const TensorSpec& spec = mSchema.inputs[static_cast<size_t>(i)];
    check_type(spec, spec.type, in[i]);
    bind(spec, in[i].dims, sizes);
  }
  check(sizes, nbInputs);
  for (int32_t i = 0; i < nbOutputs; ++i) {
    const TensorSpec& spec = mSchema.outputs[static_cast<size_t>(i)];
    check_type(spec, output_type(i), out[i]);
    bind(spec, out[i].dims, sizes);
  }
  return sizes;
}

// Build

int32_t Plugin::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, const DataType* inputTypes, int32_t nbInputs) const noexcept {
  return guarded(mSchema.name, kFailure, [&] {
    check_counts(nbInputs, nbOutputs);
    if (inputTypes == nullptr || outputTypes == nullptr) throw error("no types");
    for (int32_t i = 0; i < nbInputs; ++i) {
      const TensorSpec& spec = mSchema.inputs[static_cast<size_t>(i)];
      PluginTensorDesc got{};
      got.type = inputTypes[i];
      check_type(spec, spec.type, got);
    }
    for (int32_t i = 0; i < nbOutputs; ++i) outputTypes[i] = output_type(i);
    return kSuccess;
  });
}

// A size of an output is that of the first input with the same letter.
int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t nbInputs, const DimsExprs*, int32_t, DimsExprs* outputs, int32_t nbOutputs,
                                nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(mSchema.name, kFailure, [&] {
    check_counts(nbInputs, nbOutputs);
    if (inputs == nullptr || outputs == nullptr) throw error("no shapes");
    const nvinfer1::IDimensionExpr* by_letter[26] = {};
    for (int32_t i = 0; i < nbInputs; ++i) {
      const TensorSpec& spec = mSchema.inputs[static_cast<size_t>(i)];
      if (inputs[i].nbDims != static_cast<int32_t>(spec.shape.size())) {
        throw PluginError(std::string(mSchema.name) + ", " + spec.name + ": expected " + std::to_string(spec.shape.size()) +
                          " dimensions, got " + std::to_string(inputs[i].nbDims));
      }
      for (size_t j = 0; j < spec.shape.size(); ++j) {
        if (spec.shape[j] >= 0) continue;
        const nvinfer1::IDimensionExpr*& of_letter = by_letter[-spec.shape[j] - 'A'];
        if (of_letter == nullptr) of_letter = inputs[i].d[j];
      }
    }
    for (int32_t i = 0; i < nbOutputs; ++i) {
      const TensorSpec& spec = mSchema.outputs[static_cast<size_t>(i)];
      outputs[i].nbDims = static_cast<int32_t>(spec.shape.size());
      for (size_t j = 0; j < spec.shape.size(); ++j) {
        outputs[i].d[j] = spec.shape[j] < 0 ? by_letter[-spec.shape[j] - 'A'] : builder.constant(spec.shape[j]);
      }
    }
    return kSuccess;
  });
}

// Asked for every position with those before it set. A sentence is left behind, since all that TensorRT reports is that no format fits.
bool Plugin::supportsFormatCombination(int32_t pos, const DynamicPluginTensorDesc* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept {
  return guarded(mSchema.name, false, [&] {
    check_counts(nbInputs, nbOutputs);
    if (inOut == nullptr || pos < 0 || pos >= nbInputs + nbOutputs) throw error("no such tensor");
    const bool is_input = pos < nbInputs;
    const TensorSpec& spec = is_input ? mSchema.inputs[static_cast<size_t>(pos)] : mSchema.outputs[static_cast<size_t>(pos - nbInputs)];
    check_type(spec, is_input ? spec.type : output_type(pos - nbInputs), inOut[pos].desc);
    return true;
  });
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t nbInputs, const DynamicPluginTensorDesc* out,
                                int32_t nbOutputs) noexcept {
  return guarded(mSchema.name, kFailure, [&] {
    check_counts(nbInputs, nbOutputs);
    if (in == nullptr || out == nullptr) throw error("no descriptions");
    std::vector<PluginTensorDesc> inputs, outputs;
    for (int32_t i = 0; i < nbInputs; ++i) inputs.push_back(in[i].desc);
    for (int32_t i = 0; i < nbOutputs; ++i) outputs.push_back(out[i].desc);
    sizes_of(inputs.data(), nbInputs, outputs.data(), nbOutputs);
    for (int32_t i = 0; i < nbInputs; ++i) inputs[static_cast<size_t>(i)].dims = in[i].max;
    for (int32_t i = 0; i < nbOutputs; ++i) outputs[static_cast<size_t>(i)].dims = out[i].max;
    sizes_of(inputs.data(), nbInputs, outputs.data(), nbOutputs);
    mInputs = nbInputs;
    return kSuccess;
  });
}

// Of the largest batch, which needs the most. Nothing where the shapes are wrong: configurePlugin has refused them.
size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t nbInputs, const DynamicPluginTensorDesc* out,
                                int32_t nbOutputs) const noexcept {
  return guarded(mSchema.name, size_t{0}, [&] {
    check_counts(nbInputs, nbOutputs);
    if (in == nullptr || out == nullptr) throw error("no descriptions");
    Sizes sizes;
    for (int32_t i = 0; i < nbInputs; ++i) bind(mSchema.inputs[static_cast<size_t>(i)], in[i].max, sizes);
    check(sizes, nbInputs);
    return workspace_bytes(sizes);
  });
}

// Run

int32_t Plugin::onShapeChange(const PluginTensorDesc* in, int32_t nbInputs, const PluginTensorDesc* out, int32_t nbOutputs) noexcept {
  return guarded(mSchema.name, kFailure, [&] {
    const Sizes sizes = sizes_of(in, nbInputs, out, nbOutputs);
    if (sizes[kBatch] < 0) throw error("the batch is not known");
    mInputs = nbInputs;
    return kSuccess;
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* inputDesc, const PluginTensorDesc* outputDesc, const void* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guarded(mSchema.name, kFailure, [&] {
    if (mInputs == 0) throw error("enqueue before any shapes were given");
    const Sizes sizes = sizes_of(inputDesc, mInputs, outputDesc, getNbOutputs());
    if (sizes[kBatch] < 0) throw error("the batch is not known");
    if (sizes[kBatch] == 0) return kSuccess;
    bool is_missing = inputs == nullptr || outputs == nullptr;
    for (int32_t i = 0; !is_missing && i < mInputs; ++i) is_missing = inputs[i] == nullptr;
    for (int32_t i = 0; !is_missing && i < getNbOutputs(); ++i) is_missing = outputs[i] == nullptr;
    if (is_missing || (workspace == nullptr && workspace_bytes(sizes) > 0)) throw error("no memory");
    const int status = launch(Call{sizes, mInputs, inputs, outputs, workspace, stream});
    if (status != 0) throw error("the kernel did not start, cudaError " + std::to_string(status));
    return kSuccess;
  });
}

// Copies

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(mSchema.name, nullptr, [&] { return copy(); });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

// Creators

PluginCreator::PluginCreator(const Schema& schema, Make make) : mSchema(schema), mMake(make) {
  for (const Attribute& attribute : schema.attributes) mFields.emplace_back(attribute.name, nullptr, attribute.type, 1);
  mCollection.nbFields = static_cast<int32_t>(mFields.size());
  mCollection.fields = mFields.data();
}

nvinfer1::IPluginV3* PluginCreator::createPlugin(const char*, const PluginFieldCollection* fields, nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(mSchema.name, nullptr, [&] { return mMake(fields); });
}

}  // namespace vimtrt
