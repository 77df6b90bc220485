// KScaledLinear as a TensorRT plugin (docs/numerics.md).
#pragma once

#include "plugins/common/plugin.h"

namespace vimtrt {

const Schema& kscaled_linear_schema();

class KScaledLinearPlugin final : public Plugin {
 public:
  explicit KScaledLinearPlugin(const nvinfer1::PluginFieldCollection* fields) : Plugin(kscaled_linear_schema(), fields) {}

 protected:
  void check(const Sizes& sizes, int input_count) const override;
  DataType output_type(int output) const override;
  int launch(const Call& call) const override;
  Plugin* copy() const override { return new KScaledLinearPlugin(*this); }
};

}  // namespace vimtrt
