// BidirectionalScan as a TensorRT plugin (docs/numerics.md).
#pragma once

#include "plugins/common/plugin.h"

namespace vimtrt {

const Schema& bidirectional_scan_schema();

class BidirectionalScanPlugin final : public Plugin {
 public:
  explicit BidirectionalScanPlugin(const nvinfer1::PluginFieldCollection* fields) : Plugin(bidirectional_scan_schema(), fields) {}

 protected:
  void check(const Sizes& sizes, int input_count) const override;
  size_t workspace_bytes(const Sizes& sizes) const override;
  int launch(const Call& call) const override;
  Plugin* copy() const override { return new BidirectionalScanPlugin(*this); }
};

}  // namespace vimtrt
