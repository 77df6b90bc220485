#include "plugins/bidirectional_scan/plugin.h"

#include "plugins/bidirectional_scan/kernel.h"

namespace vimtrt {
namespace {

constexpr int32_t B = letter('B'), E = letter('E'), L = letter('L'), N = letter('N'), X = letter('X'), Z = letter('Z');
enum AttributeIndex { kBcOffset, kGateOffset, kState };
enum Input {
  kU,  // forward, backward
  kDelta = kU + 2,
  kBc = kDelta + 2,
  kGate = kBc + 2,
  kALog2,
  kDecayTok,
  kInputScale,
  kBScaleState,
  kBScaleTok,
  kCScaleState,
  kCScaleTok,
  kYScale,
  kSkipScale,
  kGateScale,
  kOutInvScaleTok
};

}  // namespace

const Schema& bidirectional_scan_schema() {
  static const Schema schema{
      "BidirectionalScan",
      {{"u_forward", DataType::kINT8, {B, L, E}},
       {"u_backward", DataType::kINT8, {B, L, E}},
       {"delta_forward", DataType::kINT8, {B, L, E}},
       {"delta_backward", DataType::kINT8, {B, L, E}},
       {"bc_forward", DataType::kINT8, {B, L, X}},
       {"bc_backward", DataType::kINT8, {B, L, X}},
       {"gate", DataType::kINT8, {B, L, Z}},
       {"a_log2", DataType::kFLOAT, {2, E, N}},
       {"decay_tok", DataType::kFLOAT, {2, L}},
       {"input_scale", DataType::kFLOAT, {2, E}},
       {"b_scale_state", DataType::kFLOAT, {2, N}},
       {"b_scale_tok", DataType::kFLOAT, {2, L}},
       {"c_scale_state", DataType::kFLOAT, {2, N}},
       {"c_scale_tok", DataType::kFLOAT, {2, L}},
       {"y_scale", DataType::kFLOAT, {2, E}},
       {"skip_scale", DataType::kFLOAT, {2, E}},
       {"gate_scale", DataType::kFLOAT, {E}},
       {"out_inv_scale_tok", DataType::kFLOAT, {L}}},
      {{"y", DataType::kINT8, {B, L, E}}},
      {{"bc_offset", nvinfer1::PluginFieldType::kINT32},
       {"gate_offset", nvinfer1::PluginFieldType::kINT32},
       {"state", nvinfer1::PluginFieldType::kCHAR, 0, 0, {"int8", "fp32"}}},
  };
  return schema;
}

void BidirectionalScanPlugin::check(const Sizes& sizes, int) const {
  if (sizes['N'] != 8 && sizes['N'] != 16) throw error("the state size must be 8 or 16");
  check_columns(kBcOffset, 2 * sizes['N'], sizes['X']);
  check_columns(kGateOffset, sizes['E'], sizes['Z']);
}

namespace {

BidirectionalScanParams params_of(const Sizes& sizes) {
  BidirectionalScanParams p;
  p.batch = sizes['B'];
  p.tokens = sizes.narrow('L');
  p.channels = sizes.narrow('E');
  p.states = sizes.narrow('N');
  p.bc_stride = sizes['X'];
  p.gate_stride = sizes['Z'];
  return p;
}

}  // namespace

size_t BidirectionalScanPlugin::workspace_bytes(const Sizes& sizes) const { return bidirectional_scan_workspace_bytes(params_of(sizes)); }

int BidirectionalScanPlugin::launch(const Call& call) const {
  BidirectionalScanParams p = params_of(call.sizes);
  p.state_int8 = text(kState) == "int8";
  for (int d = 0; d < 2; ++d) {
    p.u[d] = call.input<int8_t>(kU + d);
    p.delta[d] = call.input<int8_t>(kDelta + d);
    p.bc[d] = call.input<int8_t>(kBc + d) + integer(kBcOffset);
  }
  p.gate = call.input<int8_t>(kGate) + integer(kGateOffset);
  p.a_log2 = call.input<float>(kALog2);
  p.decay_tok = call.input<float>(kDecayTok);
  p.input_scale = call.input<float>(kInputScale);
  p.b_scale_state = call.input<float>(kBScaleState);
  p.b_scale_tok = call.input<float>(kBScaleTok);
  p.c_scale_state = call.input<float>(kCScaleState);
  p.c_scale_tok = call.input<float>(kCScaleTok);
  p.y_scale = call.input<float>(kYScale);
  p.skip_scale = call.input<float>(kSkipScale);
  p.gate_scale = call.input<float>(kGateScale);
  p.out_inv_scale_tok = call.input<float>(kOutInvScaleTok);
  p.y = call.output<int8_t>(0);
  return bidirectional_scan_launch(p, call.stream, call.workspace);
}

}  // namespace vimtrt
