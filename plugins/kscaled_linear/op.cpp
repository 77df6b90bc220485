#include "plugins/kscaled_linear/op.h"

namespace vimtrt {
namespace {

constexpr int64_t kMaxInFeatures = 65536;  // keeps the int32 sum exact
enum Attribute { kXOffset, kOutType };
enum OutType { kInt8, kFloat32 };
enum Input { kX, kWeight, kTokenScale, kChannelScale, kBias, kOutTokenScale, kTable, kTableId, kInputs };

void check(const Arguments& a) {
  check_columns(a, kscaled_linear_op(), kXOffset, a.size('C'), a.size('X'));
  if (a.size('C') > kMaxInFeatures) {
    throw OpError("at most " + std::to_string(kMaxInFeatures) + " input features keep the sum exact, got " +
                  std::to_string(a.size('C')));
  }
  if (a.input_count == kInputs && !a.chooses(kOutType, kInt8))
    throw OpError("a table needs the int8 output, got out_type float32");
}

}  // namespace

const OpDef& kscaled_linear_op() {
  static const OpDef op = {
      "KScaledLinear",
      "kscaled_linear",
      {activation("x", Type::kInt8, "B L X"), constant("weight", Type::kInt8, "O C").packed(),
       constant("token_scale", Type::kFloat32, "L"), constant("channel_scale", Type::kFloat32, "O"),
       constant("bias", Type::kFloat32, "O"), constant("out_token_scale", Type::kFloat32, "L"),
       constant("table", Type::kInt8, "T 256"), constant("table_id", Type::kInt32, "O").indices(-1, 'T')},
      {output("y", Type::kInt8, "B L O").typed_by(kOutType)},
      {integer_attribute("x_offset"), text_attribute("out_type", {"int8", "float32"})},
      2,
      check,
  };
  return op;
}

KScaledLinearParams kscaled_linear_bind(const Arguments& a) {
  KScaledLinearParams p;
  p.rows = a.size('B') * a.size('L');
  p.tokens = a.narrow('L');
  p.in_features = a.narrow('C');
  p.out_features = a.narrow('O');
  p.x_stride = a.size('X');
  p.x = a.input<int8_t>(kX, a.integer(kXOffset));
  p.weight = a.input<int8_t>(kWeight);
  p.token_scale = a.input<float>(kTokenScale);
  p.channel_scale = a.input<float>(kChannelScale);
  p.bias = a.input<float>(kBias);
  p.out_token_scale = a.input<float>(kOutTokenScale);
  p.table = a.input<int8_t>(kTable);
  p.table_id = a.input<int32_t>(kTableId);
  if (a.chooses(kOutType, kFloat32)) {
    p.y_float = a.output<float>(0);
  } else {
    p.y_int8 = a.output<int8_t>(0);
  }
  return p;
}

}  // namespace vimtrt
