// What the four TensorRT plugins share. An operator says what it takes (Schema), what its tensors' letters cannot say (check) and how it
// starts its kernel (launch); the rest of IPluginV3 follows from the schema.
//
// Weights and tables are inputs, so a plugin owns no device memory and a copy of it is a copy of its attributes. Every method that
// TensorRT calls catches what is thrown and answers with a null plugin, false or a status other than 0; last_error() then says why. The
// library calls no logger, finder or registry, whose virtual tables differ between TensorRT 10 and 11; those of the interfaces implemented
// here do not.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "plugins/common/stream.h"

namespace vimtrt {

// Attributes `plugin_version` and `plugin_namespace` of the ONNX nodes: by these the parser finds a creator.
constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "vimtrt";

using nvinfer1::DataType;

// A dimension of a schema: a letter, the same size wherever it stands in the operator, or a size.
constexpr int32_t letter(char name) { return -name; }

struct TensorSpec {
  const char* name;
  DataType type;
  std::vector<int32_t> shape;
};

// An attribute with its default, of one of three types: integer, real, or one of several texts, the first being the default.
struct Attribute {
  const char* name;
  nvinfer1::PluginFieldType type;  // kINT32, kFLOAT32 or kCHAR
  int32_t integer = 0;
  float real = 0;
  std::vector<const char*> choices = {};
};

// The same as pyvimtrt/graph/operators.py; a test compares them.
struct Schema {
  const char* name;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::vector<Attribute> attributes;
  int optional = 0;  // trailing inputs that may be absent, all or none of them
};

// Sizes by letter. The batch B is kUnknown while it is not known.
class Sizes {
 public:
  static constexpr int64_t kUnknown = -1;
  static constexpr int64_t kUnset = -2;
  Sizes() { sizes_.fill(kUnset); }
  int64_t& operator[](char name) { return sizes_[static_cast<size_t>(name - 'A')]; }
  int64_t operator[](char name) const { return sizes_[static_cast<size_t>(name - 'A')]; }
  int32_t narrow(char name) const { return static_cast<int32_t>((*this)[name]); }  // every size but the batch fits: match() has seen to it

 private:
  std::array<int64_t, 26> sizes_;
};

// What a caller got wrong, in one sentence.
struct PluginError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The last sentence of any plugin or creator of the process, for a builder that got a null plugin or a status.
std::string last_error();
void set_last_error(const std::string& text) noexcept;

struct Call {
  const Sizes& sizes;
  int input_count;
  const void* const* inputs;
  void* const* outputs;
  void* workspace;
  cuda::Stream stream;

  template <class T>
  const T* input(int i) const {
    return static_cast<const T*>(inputs[i]);
  }
  template <class T>
  T* output(int i) const {
    return static_cast<T*>(outputs[i]);
  }
};

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  // Raises PluginError for an unknown, repeated, mistyped or senseless field. Fields that are absent keep their defaults.
  Plugin(const Schema& schema, const nvinfer1::PluginFieldCollection* fields);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return mSchema.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(mSchema.outputs.size()); }
  int32_t getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, const DataType* inputTypes,
                             int32_t nbInputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t nbInputs, const nvinfer1::DimsExprs* shapeInputs,
                          int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t pos, const nvinfer1::DynamicPluginTensorDesc* inOut, int32_t nbInputs,
                                 int32_t nbOutputs) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t nbInputs, const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t nbOutputs) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t nbInputs, const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t nbOutputs) const noexcept override;

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t nbInputs, const nvinfer1::PluginTensorDesc* out,
                        int32_t nbOutputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* inputDesc, const nvinfer1::PluginTensorDesc* outputDesc, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 protected:
  // Attributes by their place in the schema.
  int32_t integer(size_t attribute) const { return mValues[attribute].integer; }
  float real(size_t attribute) const { return mValues[attribute].real; }
  const std::string& text(size_t attribute) const { return mValues[attribute].text; }

  PluginError error(const std::string& what) const { return PluginError(mSchema.name + (": " + what)); }
  // Raises PluginError where `columns` columns from the offset that the attribute gives do not lie within `available`.
  void check_columns(size_t offset_attribute, int64_t columns, int64_t available) const;

  // The type of an output, where it depends on an attribute.
  virtual DataType output_type(int output) const { return mSchema.outputs[static_cast<size_t>(output)].type; }
  // Raises PluginError for sizes that every letter allows and the operator does not.
  virtual void check(const Sizes& sizes, int input_count) const = 0;
  virtual size_t workspace_bytes(const Sizes&) const { return 0; }
  // Starts the kernel; returns 0 or a cudaError_t.
  virtual int launch(const Call& call) const = 0;
  virtual Plugin* copy() const = 0;

 private:
  struct Value {
    int32_t integer = 0;
    float real = 0;
    std::string text;
  };

  void read(const nvinfer1::PluginField& field, std::vector<bool>& seen);
  void check_counts(int32_t inputs, int32_t outputs) const;
  void check_type(const TensorSpec& spec, DataType expected, const nvinfer1::PluginTensorDesc& got) const;
  void bind(const TensorSpec& spec, const nvinfer1::Dims& dims, Sizes& sizes) const;
  Sizes sizes_of(const nvinfer1::PluginTensorDesc* in, int32_t nbInputs, const nvinfer1::PluginTensorDesc* out, int32_t nbOutputs) const;

  const Schema& mSchema;
  std::vector<Value> mValues;
  std::vector<nvinfer1::PluginField> mFields;  // points into mValues: made anew for every caller
  nvinfer1::PluginFieldCollection mCollection{};
  int32_t mInputs = 0;  // how many there are: enqueue is not told
};

// Makes plugins of one operator.
class PluginCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  using Make = Plugin* (*)(const nvinfer1::PluginFieldCollection* fields);
  PluginCreator(const Schema& schema, Make make);

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &mCollection; }
  const char* getPluginName() const noexcept override { return mSchema.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }
  const Schema& schema() const { return mSchema; }

 private:
  const Schema& mSchema;
  Make mMake;
  std::vector<nvinfer1::PluginField> mFields;
  nvinfer1::PluginFieldCollection mCollection{};
};

}  // namespace vimtrt
