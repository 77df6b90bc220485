#include "plugins/add_layer_norm_quant/op.h"

namespace vimtrt {
namespace {

enum Attribute { kEpsilon };
enum Input { kHidden, kResidual, kGain, kShift, kInvScaleTok };
enum Output { kResidualOut, kY };

void check(const Arguments& a) {
  if (a.size('R') != 1 && a.size('R') != a.size('B')) {
    throw OpError("residual must have one row of tokens for each image, or one for all");
  }
  if (!(a.real(kEpsilon) > 0.0f && a.real(kEpsilon) < 1.0f)) {
    throw OpError("epsilon must lie between 0 and 1, got " + std::to_string(a.real(kEpsilon)));
  }
}

}  // namespace

const OpDef& add_layer_norm_quant_op() {
  static const OpDef op = {
      "AddLayerNormQuant",
      "add_layer_norm_quant",
      {activation("hidden", Type::kFloat32, "B L D"), activation_or_constant("residual", Type::kFloat32, "R L D"),
       constant("gain", Type::kFloat32, "D"), constant("shift", Type::kFloat32, "D"),
       constant("inv_scale_tok", Type::kFloat32, "L")},
      {output("residual_out", Type::kFloat32, "B L D"), output("y", Type::kInt8, "B L D")},
      {real_attribute("epsilon", 1e-5f)},
      0,
      check,
  };
  return op;
}

AddLayerNormQuantParams add_layer_norm_quant_bind(const Arguments& a) {
  AddLayerNormQuantParams p;
  p.rows = a.size('B') * a.size('L');
  p.tokens = a.narrow('L');
  p.features = a.narrow('D');
  p.residual_is_shared = a.size('R') == 1;
  p.epsilon = a.real(kEpsilon);
  p.hidden = a.input<float>(kHidden);
  p.residual = a.input<float>(kResidual);
  p.gain = a.input<float>(kGain);
  p.shift = a.input<float>(kShift);
  p.inv_scale_tok = a.input<float>(kInvScaleTok);
  p.residual_out = a.output<float>(kResidualOut);
  p.y = a.output<int8_t>(kY);
  return p;
}

}  // namespace vimtrt
