#include "plugins/add_rms_norm_quant/plugin.h"

#include "plugins/add_rms_norm_quant/kernel.h"

namespace vimtrt {
namespace {

constexpr int32_t B = letter('B'), D = letter('D'), L = letter('L'), R = letter('R');
enum AttributeIndex { kEpsilon };
enum Input { kHidden, kResidual, kGain, kInvScaleTok };
enum Output { kResidualOut, kY };

}  // namespace

const Schema& add_rms_norm_quant_schema() {
  static const Schema schema{
      "AddRMSNormQuant",
      {{"hidden", DataType::kFLOAT, {B, L, D}},
       {"residual", DataType::kFLOAT, {R, L, D}},
       {"gain", DataType::kFLOAT, {D}},
       {"inv_scale_tok", DataType::kFLOAT, {L}}},
      {{"residual_out", DataType::kFLOAT, {B, L, D}}, {"y", DataType::kINT8, {B, L, D}}},
      {{"epsilon", nvinfer1::PluginFieldType::kFLOAT32, 0, 1e-5f}},
  };
  return schema;
}

void AddRMSNormQuantPlugin::check(const Sizes& sizes, int) const {
  if (sizes['R'] != 1 && sizes['R'] != sizes['B']) throw error("residual must have one row of tokens for each image, or one for all");
  if (!(real(kEpsilon) > 0.0f && real(kEpsilon) < 1.0f)) throw error("epsilon must lie between 0 and 1");
}

int AddRMSNormQuantPlugin::launch(const Call& call) const {
  AddRmsNormQuantParams p;
  p.rows = call.sizes['B'] * call.sizes['L'];
  p.tokens = call.sizes.narrow('L');
  p.features = call.sizes.narrow('D');
  p.residual_is_shared = call.sizes['R'] == 1;
  p.epsilon = real(kEpsilon);
  p.hidden = call.input<float>(kHidden);
  p.residual = call.input<float>(kResidual);
  p.gain = call.input<float>(kGain);
  p.inv_scale_tok = call.input<float>(kInvScaleTok);
  p.residual_out = call.output<float>(kResidualOut);
  p.y = call.output<int8_t>(kY);
  return add_rms_norm_quant_launch(p, call.stream);
}

}  // namespace vimtrt
