// The TensorRT plugin of any operator: all of IPluginV3 follows from the operator's definition (op.h)
// and its launch (cuda_operator.h).
//
// Weights and tables are inputs, so a plugin owns no device memory and a copy of it is a copy of its attributes. Every
// method that TensorRT calls catches what is thrown and answers with a null plugin, false or a status other than 0;
// last_error() then says why. The library calls no logger, finder or registry, whose virtual tables differ between
// TensorRT 10 and 11; those of the interfaces implemented here do not.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "plugins/common/cuda_operator.h"
#include "plugins/common/op.h"

namespace vimtrt {

// Attributes `plugin_version` and `plugin_namespace` of the ONNX nodes: by these the parser finds a creator.
constexpr const char* kPluginVersion = "2";
constexpr const char* kPluginNamespace = "vimtrt";

using nvinfer1::DataType;

nvinfer1::PluginFieldType field_type(AttributeDef::Kind kind);
DataType data_type(Type type);

// The last sentence of any plugin or creator of the process, for a builder that got a null plugin or a status.
std::string last_error();
void set_last_error(const std::string& text) noexcept;

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // Raises OpError for an unknown, repeated, mistyped or senseless field. Fields that are absent keep their defaults.
  Plugin(const OpDef& op, const nvinfer1::PluginFieldCollection* fields);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return mOp.name.c_str(); }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(mOp.outputs.size()); }
  int32_t getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, const DataType* inputTypes,
                             int32_t nbInputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t nbInputs, const nvinfer1::DimsExprs* shapeInputs,
                          int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t pos, const nvinfer1::DynamicPluginTensorDesc* inOut, int32_t nbInputs,
                                 int32_t nbOutputs) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t nbInputs,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t nbOutputs) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t nbInputs,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t nbOutputs) const noexcept override;

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t nbInputs, const nvinfer1::PluginTensorDesc* out,
                        int32_t nbOutputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* inputDesc, const nvinfer1::PluginTensorDesc* outputDesc,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  void read(const nvinfer1::PluginField& field, std::vector<bool>& seen);
  void check_type(const TensorDef& tensor, Type expected, const nvinfer1::PluginTensorDesc& got) const;
  // The sizes of all tensors' letters, checked. Raises OpError.
  Arguments bind(const nvinfer1::PluginTensorDesc* in, int32_t nbInputs, const nvinfer1::PluginTensorDesc* out,
                 int32_t nbOutputs) const;

  const OpDef& mOp;
  Attributes mAttributes;
  std::vector<nvinfer1::PluginField> mFields;  // points into mAttributes and the definition: made anew for every caller
  nvinfer1::PluginFieldCollection mCollection{};
  int32_t mInputs = 0;  // how many there are: enqueue is not told
};

// Makes plugins of one operator.
class PluginCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit PluginCreator(const OpDef& op);

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &mCollection; }
  const char* getPluginName() const noexcept override { return mOp.name.c_str(); }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }
  const OpDef& op() const { return mOp; }

 private:
  const OpDef& mOp;
  std::vector<nvinfer1::PluginField> mFields;
  nvinfer1::PluginFieldCollection mCollection{};
};

}  // namespace vimtrt
