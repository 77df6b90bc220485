// AddRMSNormQuant as a TensorRT plugin (docs/numerics.md).
#pragma once

#include "plugins/common/plugin.h"

namespace vimtrt {

const Schema& add_rms_norm_quant_schema();

class AddRMSNormQuantPlugin final : public Plugin {
 public:
  explicit AddRMSNormQuantPlugin(const nvinfer1::PluginFieldCollection* fields) : Plugin(add_rms_norm_quant_schema(), fields) {}

 protected:
  void check(const Sizes& sizes, int input_count) const override;
  int launch(const Call& call) const override;
  Plugin* copy() const override { return new AddRMSNormQuantPlugin(*this); }
};

}  // namespace vimtrt
