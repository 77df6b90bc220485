#include "plugins/add_rms_norm_quant/op.h"

#include "plugins/common/norm_op.h"

namespace vimtrt {
namespace {

enum Input { kInvScaleTok = norm::kGain + 1 };  // behind those of norm_op.h

}  // namespace

const OpDef& add_rms_norm_quant_op() {
  static const OpDef op = {
      "AddRMSNormQuant",
      "add_rms_norm_quant",
      {activation("hidden", Type::kFloat32, "B L D"), activation_or_constant("residual", Type::kFloat32, "R L D"),
       constant("gain", Type::kFloat32, "D"), constant("inv_scale_tok", Type::kFloat32, "L")},
      {output("residual_out", Type::kFloat32, "B L D"), output("y", Type::kInt8, "B L D")},
      {real_attribute("epsilon", 1e-5f)},
      0,
      norm::check,
  };
  return op;
}

AddRmsNormQuantParams add_rms_norm_quant_bind(const Arguments& a) {
  AddRmsNormQuantParams p = norm::bind<AddRmsNormQuantParams>(a);
  p.inv_scale_tok = a.input<float>(kInvScaleTok);
  return p;
}

}  // namespace vimtrt
