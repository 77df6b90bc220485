#include "plugins/kscaled_linear/plugin.h"

#include "plugins/kscaled_linear/kernel.h"

namespace vimtrt {
namespace {

constexpr int32_t B = letter('B'), C = letter('C'), L = letter('L'), O = letter('O'), T = letter('T'), X = letter('X');
constexpr int64_t kMaxInFeatures = 65536;  // keeps the int32 sum exact
enum AttributeIndex { kXOffset, kOutType };
enum Input { kX, kWeight, kTokenScale, kChannelScale, kBias, kOutTokenScale, kTable, kTableId, kInputs };

}  // namespace

const Schema& kscaled_linear_schema() {
  static const Schema schema{
      "KScaledLinear",
      {{"x", DataType::kINT8, {B, L, X}},
       {"weight", DataType::kINT8, {O, C}},
       {"token_scale", DataType::kFLOAT, {L}},
       {"channel_scale", DataType::kFLOAT, {O}},
       {"bias", DataType::kFLOAT, {O}},
       {"out_token_scale", DataType::kFLOAT, {L}},
       {"table", DataType::kINT8, {T, 256}},
       {"table_id", DataType::kINT32, {O}}},
      {{"y", DataType::kINT8, {B, L, O}}},
      {{"x_offset", nvinfer1::PluginFieldType::kINT32}, {"out_type", nvinfer1::PluginFieldType::kCHAR, 0, 0, {"int8", "float32"}}},
      2,
  };
  return schema;
}

DataType KScaledLinearPlugin::output_type(int) const { return text(kOutType) == "float32" ? DataType::kFLOAT : DataType::kINT8; }

void KScaledLinearPlugin::check(const Sizes& sizes, int input_count) const {
  check_columns(kXOffset, sizes['C'], sizes['X']);
  if (sizes['C'] > kMaxInFeatures) throw error("at most 65536 input features keep the sum exact");
  if (input_count == kInputs && output_type(0) != DataType::kINT8) throw error("a table needs the int8 output");
}

int KScaledLinearPlugin::launch(const Call& call) const {
  KScaledLinearParams p;
  p.rows = call.sizes['B'] * call.sizes['L'];
  p.tokens = call.sizes.narrow('L');
  p.in_features = call.sizes.narrow('C');
  p.out_features = call.sizes.narrow('O');
  p.x_stride = call.sizes['X'];
  p.x = call.input<int8_t>(kX) + integer(kXOffset);
  p.weight = call.input<int8_t>(kWeight);
  p.token_scale = call.input<float>(kTokenScale);
  p.channel_scale = call.input<float>(kChannelScale);
  p.bias = call.input<float>(kBias);
  p.out_token_scale = call.input<float>(kOutTokenScale);
  if (call.input_count == kInputs) {
    p.table = call.input<int8_t>(kTable);
    p.table_id = call.input<int32_t>(kTableId);
  }
  if (output_type(0) == DataType::kFLOAT) {
    p.y_float = call.output<float>(0);
  } else {
    p.y_int8 = call.output<int8_t>(0);
  }
  return kscaled_linear_launch(p, call.stream);
}

}  // namespace vimtrt
