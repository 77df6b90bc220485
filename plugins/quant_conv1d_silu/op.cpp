#include "plugins/quant_conv1d_silu/op.h"

namespace vimtrt {
namespace {

enum Attribute { kXOffset };
enum Input { kX, kWeight, kChannelScale, kBias, kTable, kTableId };

void check(const Arguments& a) { check_columns(a, quant_conv1d_silu_op(), kXOffset, a.size('E'), a.size('X')); }

}  // namespace

const OpDef& quant_conv1d_silu_op() {
  static const OpDef op = {
      "QuantConv1dSiLU",
      "quant_conv1d_silu",
      {activation("x", Type::kInt8, "B L X"), constant("weight", Type::kInt8, "2 E 4"),
       constant("channel_scale", Type::kFloat32, "2 E"), constant("bias", Type::kFloat32, "2 E"),
       constant("table", Type::kInt8, "T 256"), constant("table_id", Type::kInt32, "2 E").indices(0, 'T')},
      {output("u_forward", Type::kInt8, "B L E"), output("u_backward", Type::kInt8, "B L E")},
      {integer_attribute("x_offset")},
      0,
      check,
  };
  return op;
}

QuantConv1dSiluParams quant_conv1d_silu_bind(const Arguments& a) {
  QuantConv1dSiluParams p;
  p.batch = a.size('B');
  p.tokens = a.narrow('L');
  p.channels = a.narrow('E');
  p.x_stride = a.size('X');
  p.x = a.input<int8_t>(kX, a.integer(kXOffset));
  p.weight = a.input<int8_t>(kWeight);
  p.channel_scale = a.input<float>(kChannelScale);
  p.bias = a.input<float>(kBias);
  p.table = a.input<int8_t>(kTable);
  p.table_id = a.input<int32_t>(kTableId);
  for (size_t d = 0; d < 2; ++d) p.u[d] = a.output<int8_t>(d);
  return p;
}

}  // namespace vimtrt
