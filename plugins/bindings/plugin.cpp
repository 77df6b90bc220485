#include "plugins/bindings/plugin.h"

#include <cstring>
#include <mutex>

#include "plugins/operators.h"

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
constexpr char kBatch = 'B';

std::mutex g_error_mutex;
std::string g_error;

// What `body` returns, or `failure` where it throws. Nothing gets past it: TensorRT's methods are noexcept, and an
// exception would end the process.
template <class Result, class Body>
Result guarded(const OpDef& op, Result failure, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    try {
      const std::string what = error.what();
      set_last_error(what.rfind(op.name, 0) == 0 ? what
                                                 : op.name +
                                                       (what.rfind("input ", 0) == 0 || what.rfind("output ", 0) == 0 ||
                                                                what.rfind("attribute ", 0) == 0
                                                            ? ", "
                                                            : ": ") +
                                                       what);
    } catch (...) {  // no memory for the sentence: the status alone remains
    }
  } catch (...) {
    set_last_error("unknown");
  }
  return failure;
}

const char* name_of(DataType type) {
  for (const Type known : {Type::kInt8, Type::kInt32, Type::kFloat32}) {
    if (data_type(known) == type) return type_name(known);
  }
  return "another type";
}

const char* name_of(AttributeDef::Kind kind) {
  return kind == AttributeDef::Kind::kInteger ? "one int32"
         : kind == AttributeDef::Kind::kReal  ? "one float32"
                                              : "text";
}

std::vector<int64_t> shape_of(const Dims& dims) {
  return std::vector<int64_t>(dims.d, dims.d + std::min(std::max(dims.nbDims, 0), Dims::MAX_DIMS));
}

OpError missing(const OpDef& op, const char* what) { return OpError(op.name + ": " + what); }

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

nvinfer1::PluginFieldType field_type(AttributeDef::Kind kind) {
  switch (kind) {
    case AttributeDef::Kind::kInteger:
      return PluginFieldType::kINT32;
    case AttributeDef::Kind::kReal:
      return PluginFieldType::kFLOAT32;
    case AttributeDef::Kind::kText:
      break;
  }
  return PluginFieldType::kCHAR;
}

DataType data_type(Type type) {
  return type == Type::kInt8 ? DataType::kINT8 : type == Type::kInt32 ? DataType::kINT32 : DataType::kFLOAT;
}

// Attributes

Plugin::Plugin(const OpDef& op, const PluginFieldCollection* fields) : mOp(op), mAttributes(default_attributes(op)) {
  if (fields == nullptr) return;
  if (fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) throw missing(op, "no fields");
  std::vector<bool> seen(op.attributes.size(), false);
  for (int32_t i = 0; i < fields->nbFields; ++i) read(fields->fields[i], seen);
}

void Plugin::read(const PluginField& field, std::vector<bool>& seen) {
  if (field.name == nullptr) throw OpError("a field without a name");
  const size_t index = attribute_index(mOp, std::string(field.name, strnlen(field.name, kMaxTextBytes)));
  const AttributeDef& attribute = mOp.attributes[index];
  const std::string where = "attribute " + attribute.name + ": ";
  if (seen[index]) throw OpError(where + "given twice");
  seen[index] = true;
  const int32_t most = attribute.kind == AttributeDef::Kind::kText ? kMaxTextBytes : 1;
  if (field.type != field_type(attribute.kind) || field.data == nullptr || field.length < 1 || field.length > most) {
    throw OpError(where + "must be " + name_of(attribute.kind));
  }
  if (attribute.kind == AttributeDef::Kind::kInteger) {
    std::memcpy(&mAttributes.integer[index], field.data, sizeof(int32_t));
  } else if (attribute.kind == AttributeDef::Kind::kReal) {
    std::memcpy(&mAttributes.real[index], field.data, sizeof(float));
  } else {  // with or without the zero at its end
    const char* text = static_cast<const char*>(field.data);
    set_attribute(mOp, index, std::string(text, strnlen(text, static_cast<size_t>(field.length))), mAttributes);
  }
}

const PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return guarded<const PluginFieldCollection*>(mOp, nullptr, [&] {
    mFields.clear();
    for (size_t i = 0; i < mOp.attributes.size(); ++i) {
      const AttributeDef& attribute = mOp.attributes[i];
      const void* data = &mAttributes.integer[i];
      int32_t length = 1;
      if (attribute.kind == AttributeDef::Kind::kReal) data = &mAttributes.real[i];
      if (attribute.kind == AttributeDef::Kind::kText) {
        const std::string& text = text_of(mOp, mAttributes, i);
        data = text.c_str();
        length = static_cast<int32_t>(text.size() + 1);
      }
      mFields.emplace_back(attribute.name.c_str(), data, field_type(attribute.kind), length);
    }
    mCollection.nbFields = static_cast<int32_t>(mFields.size());
    mCollection.fields = mFields.data();
    return &mCollection;
  });
}

// Shapes and types

void Plugin::check_type(const TensorDef& tensor, Type expected, const PluginTensorDesc& got) const {
  if (got.type != data_type(expected)) {
    throw OpError(where(tensor) + "expected " + type_name(expected) + ", got " + name_of(got.type));
  }
  if (got.format != nvinfer1::TensorFormat::kLINEAR) throw OpError(where(tensor) + "expected the linear format");
}

Arguments Plugin::bind(const PluginTensorDesc* in, int32_t nbInputs, const PluginTensorDesc* out,
                       int32_t nbOutputs) const {
  check_counts(mOp, static_cast<size_t>(nbInputs), static_cast<size_t>(nbOutputs));
  if (in == nullptr || out == nullptr) throw missing(mOp, "no descriptions");
  Arguments arguments;
  arguments.attributes = mAttributes;
  arguments.input_count = nbInputs;
  for (size_t i = 0; i < static_cast<size_t>(nbInputs); ++i) {
    check_type(mOp.inputs[i], mOp.inputs[i].type, in[i]);
    match_shape(mOp.inputs[i], shape_of(in[i].dims), arguments.sizes);
  }
  check_limits(mOp, arguments);
  for (size_t i = 0; i < mOp.outputs.size(); ++i) {
    check_type(mOp.outputs[i], vimtrt::output_type(mOp, i, mAttributes), out[i]);
    match_shape(mOp.outputs[i], shape_of(out[i].dims), arguments.sizes);
  }
  return arguments;
}

// Build

int32_t Plugin::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, const DataType* inputTypes,
                                   int32_t nbInputs) const noexcept {
  return guarded(mOp, kFailure, [&] {
    check_counts(mOp, static_cast<size_t>(nbInputs), static_cast<size_t>(nbOutputs));
    if (inputTypes == nullptr || outputTypes == nullptr) throw missing(mOp, "no types");
    for (size_t i = 0; i < static_cast<size_t>(nbInputs); ++i) {
      PluginTensorDesc got{};
      got.type = inputTypes[i];
      check_type(mOp.inputs[i], mOp.inputs[i].type, got);
    }
    for (size_t i = 0; i < mOp.outputs.size(); ++i)
      outputTypes[i] = data_type(vimtrt::output_type(mOp, i, mAttributes));
    return kSuccess;
  });
}

// A letter's size is what the first input with it says.
int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t nbInputs, const DimsExprs*, int32_t,
                                DimsExprs* outputs, int32_t nbOutputs, nvinfer1::IExprBuilder& builder) noexcept {
  using nvinfer1::DimensionOperation;
  return guarded(mOp, kFailure, [&] {
    check_counts(mOp, static_cast<size_t>(nbInputs), static_cast<size_t>(nbOutputs));
    if (inputs == nullptr || outputs == nullptr) throw missing(mOp, "no shapes");
    // expression * times / parts
    const auto scaled = [&](const nvinfer1::IDimensionExpr* expression, int64_t times, int64_t parts) {
      if (times > 1) expression = builder.operation(DimensionOperation::kPROD, *expression, *builder.constant(times));
      if (parts > 1)
        expression = builder.operation(DimensionOperation::kFLOOR_DIV, *expression, *builder.constant(parts));
      return expression;
    };
    const nvinfer1::IDimensionExpr* by_letter[26] = {};
    for (size_t i = 0; i < static_cast<size_t>(nbInputs); ++i) {
      const TensorDef& tensor = mOp.inputs[i];
      if (inputs[i].nbDims != static_cast<int32_t>(tensor.shape.size())) {
        throw OpError(where(tensor) + "expected " + std::to_string(tensor.shape.size()) + " dimensions, got " +
                      std::to_string(inputs[i].nbDims));
      }
      for (size_t j = 0; j < tensor.shape.size(); ++j) {
        const Dimension& dimension = tensor.shape[j];
        if (dimension.letter == '\0') continue;
        const nvinfer1::IDimensionExpr*& of_letter = by_letter[dimension.letter - 'A'];
        if (of_letter == nullptr) of_letter = scaled(inputs[i].d[j], dimension.parts, dimension.times);
      }
    }
    for (size_t i = 0; i < mOp.outputs.size(); ++i) {
      const std::vector<Dimension>& shape = mOp.outputs[i].shape;
      outputs[i].nbDims = static_cast<int32_t>(shape.size());
      for (size_t j = 0; j < shape.size(); ++j) {
        const Dimension& dimension = shape[j];
        outputs[i].d[j] = dimension.letter == '\0'
                              ? builder.constant(dimension.times)
                              : scaled(by_letter[dimension.letter - 'A'], dimension.times, dimension.parts);
      }
    }
    return kSuccess;
  });
}

// Asked for every position with those before it set. A sentence is left behind, since all that TensorRT reports is that
// no format fits.
bool Plugin::supportsFormatCombination(int32_t pos, const DynamicPluginTensorDesc* inOut, int32_t nbInputs,
                                       int32_t nbOutputs) noexcept {
  return guarded(mOp, false, [&] {
    check_counts(mOp, static_cast<size_t>(nbInputs), static_cast<size_t>(nbOutputs));
    if (inOut == nullptr || pos < 0 || pos >= nbInputs + nbOutputs) throw missing(mOp, "no such tensor");
    const bool is_input = pos < nbInputs;
    const auto place = static_cast<size_t>(is_input ? pos : pos - nbInputs);
    const TensorDef& tensor = is_input ? mOp.inputs[place] : mOp.outputs[place];
    check_type(tensor, is_input ? tensor.type : vimtrt::output_type(mOp, place, mAttributes), inOut[pos].desc);
    return true;
  });
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t nbInputs, const DynamicPluginTensorDesc* out,
                                int32_t nbOutputs) noexcept {
  return guarded(mOp, kFailure, [&] {
    check_counts(mOp, static_cast<size_t>(nbInputs), static_cast<size_t>(nbOutputs));
    if (in == nullptr || out == nullptr) throw missing(mOp, "no descriptions");
    std::vector<PluginTensorDesc> inputs, outputs;
    for (int32_t i = 0; i < nbInputs; ++i) inputs.push_back(in[i].desc);
    for (int32_t i = 0; i < nbOutputs; ++i) outputs.push_back(out[i].desc);
    bind(inputs.data(), nbInputs, outputs.data(), nbOutputs);
    for (int32_t i = 0; i < nbInputs; ++i) inputs[static_cast<size_t>(i)].dims = in[i].max;
    for (int32_t i = 0; i < nbOutputs; ++i) outputs[static_cast<size_t>(i)].dims = out[i].max;
    bind(inputs.data(), nbInputs, outputs.data(), nbOutputs);
    mInputs = nbInputs;
    return kSuccess;
  });
}

// Of the largest batch, which needs the most. Nothing where the shapes are wrong: configurePlugin has refused them.
size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t nbInputs, const DynamicPluginTensorDesc* out,
                                int32_t nbOutputs) const noexcept {
  return guarded(mOp, size_t{0}, [&] {
    check_counts(mOp, static_cast<size_t>(nbInputs), static_cast<size_t>(nbOutputs));
    if (in == nullptr || out == nullptr) throw missing(mOp, "no descriptions");
    Arguments arguments;
    arguments.attributes = mAttributes;
    arguments.input_count = nbInputs;
    for (size_t i = 0; i < static_cast<size_t>(nbInputs); ++i)
      match_shape(mOp.inputs[i], shape_of(in[i].max), arguments.sizes);
    check_limits(mOp, arguments);
    return cuda_operator_of(mOp).workspace_bytes(arguments);
  });
}

// Run

int32_t Plugin::onShapeChange(const PluginTensorDesc* in, int32_t nbInputs, const PluginTensorDesc* out,
                              int32_t nbOutputs) noexcept {
  return guarded(mOp, kFailure, [&] {
    if (bind(in, nbInputs, out, nbOutputs).size(kBatch) < 0) throw missing(mOp, "the batch is not known");
    mInputs = nbInputs;
    return kSuccess;
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* inputDesc, const PluginTensorDesc* outputDesc,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  return guarded(mOp, kFailure, [&] {
    if (mInputs == 0) throw missing(mOp, "enqueue before any shapes were given");
    Arguments arguments = bind(inputDesc, mInputs, outputDesc, getNbOutputs());
    if (arguments.size(kBatch) < 0) throw missing(mOp, "the batch is not known");
    if (arguments.size(kBatch) == 0) return kSuccess;
    const CudaOperator& op = cuda_operator_of(mOp);
    bool is_missing = inputs == nullptr || outputs == nullptr;
    for (size_t i = 0; !is_missing && i < static_cast<size_t>(mInputs); ++i) {
      arguments.inputs[i] = inputs[i];
      is_missing = inputs[i] == nullptr;
    }
    for (size_t i = 0; !is_missing && i < mOp.outputs.size(); ++i) {
      arguments.outputs[i] = outputs[i];
      is_missing = outputs[i] == nullptr;
    }
    if (is_missing || (workspace == nullptr && op.workspace_bytes(arguments) > 0)) throw missing(mOp, "no memory");
    const int status = op.launch(arguments, stream, workspace);
    if (status != 0) throw missing(mOp, ("the kernel did not start, cudaError " + std::to_string(status)).c_str());
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
  return guarded<nvinfer1::IPluginV3*>(mOp, nullptr, [&] { return new Plugin(*this); });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

// Creators

PluginCreator::PluginCreator(const OpDef& op) : mOp(op) {
  for (const AttributeDef& attribute : op.attributes)
    mFields.emplace_back(attribute.name.c_str(), nullptr, field_type(attribute.kind), 1);
  mCollection.nbFields = static_cast<int32_t>(mFields.size());
  mCollection.fields = mFields.data();
}

nvinfer1::IPluginV3* PluginCreator::createPlugin(const char*, const PluginFieldCollection* fields,
                                                 nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(mOp, nullptr, [&] { return new Plugin(mOp, fields); });
}

}  // namespace vimtrt
