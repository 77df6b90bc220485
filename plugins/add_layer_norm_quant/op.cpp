#include "plugins/add_layer_norm_quant/op.h"

#include "plugins/common/norm_op.h"

namespace vimtrt {
namespace {

enum Input { kShift = norm::kGain + 1, kInvScaleTok };  // behind those of norm_op.h

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
      norm::check,
  };
  return op;
}

AddLayerNormQuantParams add_layer_norm_quant_bind(const Arguments& a) {
  AddLayerNormQuantParams p = norm::bind<AddLayerNormQuantParams>(a);
  p.shift = a.input<float>(kShift);
  p.inv_scale_tok = a.input<float>(kInvScaleTok);
  return p;
}

}  // namespace vimtrt
