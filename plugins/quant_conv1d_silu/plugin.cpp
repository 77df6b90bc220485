#include "plugins/quant_conv1d_silu/plugin.h"

#include "plugins/quant_conv1d_silu/kernel.h"

namespace vimtrt {
namespace {

constexpr int32_t B = letter('B'), E = letter('E'), L = letter('L'), T = letter('T'), X = letter('X');
enum AttributeIndex { kXOffset };
enum Input { kX, kWeight, kChannelScale, kBias, kTable, kTableId };

}  // namespace

const Schema& quant_conv1d_silu_schema() {
  static const Schema schema{
      "QuantConv1dSiLU",
      {{"x", DataType::kINT8, {B, L, X}},
       {"weight", DataType::kINT8, {2, E, 4}},
       {"channel_scale", DataType::kFLOAT, {2, E}},
       {"bias", DataType::kFLOAT, {2, E}},
       {"table", DataType::kINT8, {T, 256}},
       {"table_id", DataType::kINT32, {2, E}}},
      {{"u_forward", DataType::kINT8, {B, L, E}}, {"u_backward", DataType::kINT8, {B, L, E}}},
      {{"x_offset", nvinfer1::PluginFieldType::kINT32}},
  };
  return schema;
}

void QuantConv1dSiLUPlugin::check(const Sizes& sizes, int) const { check_columns(kXOffset, sizes['E'], sizes['X']); }

int QuantConv1dSiLUPlugin::launch(const Call& call) const {
  QuantConv1dSiluParams p;
  p.batch = call.sizes['B'];
  p.tokens = call.sizes.narrow('L');
  p.channels = call.sizes.narrow('E');
  p.x_stride = call.sizes['X'];
  p.x = call.input<int8_t>(kX) + integer(kXOffset);
  p.weight = call.input<int8_t>(kWeight);
  p.channel_scale = call.input<float>(kChannelScale);
  p.bias = call.input<float>(kBias);
  p.table = call.input<int8_t>(kTable);
  p.table_id = call.input<int32_t>(kTableId);
  for (int d = 0; d < 2; ++d) p.u[d] = call.output<int8_t>(d);
  return quant_conv1d_silu_launch(p, call.stream);
}

}  // namespace vimtrt
