// QuantConv1dSiLU as a TensorRT plugin (docs/numerics.md).
#pragma once

#include "plugins/common/plugin.h"

namespace vimtrt {

const Schema& quant_conv1d_silu_schema();

class QuantConv1dSiLUPlugin final : public Plugin {
 public:
  explicit QuantConv1dSiLUPlugin(const nvinfer1::PluginFieldCollection* fields) : Plugin(quant_conv1d_silu_schema(), fields) {}

 protected:
  void check(const Sizes& sizes, int input_count) const override;
  int launch(const Call& call) const override;
  Plugin* copy() const override { return new QuantConv1dSiLUPlugin(*this); }
};

}  // namespace vimtrt
