#include "plugins/bidirectional_scan/op.h"

namespace vimtrt {
namespace {

enum Attribute { kBcOffset, kGateOffset, kState };
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

void check(const Arguments& a) {
  const int64_t states = a.size('N');
  if (states != 8 && states != 16) throw OpError("the state size must be 8 or 16, got " + std::to_string(states));
  if (2 * a.size('E') * states > INT32_MAX)
    throw OpError("channels times states are too many: " + std::to_string(a.size('E')));
  check_columns(a, bidirectional_scan_op(), kBcOffset, 2 * states, a.size('X'));
  check_columns(a, bidirectional_scan_op(), kGateOffset, a.size('E'), a.size('Z'));
}

}  // namespace

const OpDef& bidirectional_scan_op() {
  static const OpDef op = {
      "BidirectionalScan",
      "bidirectional_scan",
      {activation("u_forward", Type::kInt8, "B L E"), activation("u_backward", Type::kInt8, "B L E"),
       activation("delta_forward", Type::kInt8, "B L E"), activation("delta_backward", Type::kInt8, "B L E"),
       activation("bc_forward", Type::kInt8, "B L X"), activation("bc_backward", Type::kInt8, "B L X"),
       activation("gate", Type::kInt8, "B L Z"), constant("a_log2", Type::kFloat32, "2 E N"),
       constant("decay_tok", Type::kFloat32, "2 L"), constant("input_scale", Type::kFloat32, "2 E"),
       constant("b_scale_state", Type::kFloat32, "2 N"), constant("b_scale_tok", Type::kFloat32, "2 L"),
       constant("c_scale_state", Type::kFloat32, "2 N"), constant("c_scale_tok", Type::kFloat32, "2 L"),
       constant("y_scale", Type::kFloat32, "2 E"), constant("skip_scale", Type::kFloat32, "2 E"),
       constant("gate_scale", Type::kFloat32, "E"), constant("out_inv_scale_tok", Type::kFloat32, "L")},
      {output("y", Type::kInt8, "B L E")},
      {integer_attribute("bc_offset"), integer_attribute("gate_offset"), text_attribute("state", {"int8", "fp32"})},
      0,
      check,
  };
  return op;
}

BidirectionalScanParams bidirectional_scan_bind(const Arguments& a) {
  BidirectionalScanParams p;
  p.batch = a.size('B');
  p.tokens = a.narrow('L');
  p.channels = a.narrow('E');
  p.states = a.narrow('N');
  p.state = static_cast<ScanState>(a.integer(kState));
  p.bc_stride = a.size('X');
  p.gate_stride = a.size('Z');
  for (size_t d = 0; d < 2; ++d) {
    p.u[d] = a.input<int8_t>(kU + d);
    p.delta[d] = a.input<int8_t>(kDelta + d);
    p.bc[d] = a.input<int8_t>(kBc + d, a.integer(kBcOffset));
  }
  p.gate = a.input<int8_t>(kGate, a.integer(kGateOffset));
  p.a_log2 = a.input<float>(kALog2);
  p.decay_tok = a.input<float>(kDecayTok);
  p.input_scale = a.input<float>(kInputScale);
  p.b_scale_state = a.input<float>(kBScaleState);
  p.b_scale_tok = a.input<float>(kBScaleTok);
  p.c_scale_state = a.input<float>(kCScaleState);
  p.c_scale_tok = a.input<float>(kCScaleTok);
  p.y_scale = a.input<float>(kYScale);
  p.skip_scale = a.input<float>(kSkipScale);
  p.gate_scale = a.input<float>(kGateScale);
  p.out_inv_scale_tok = a.input<float>(kOutInvScaleTok);
  p.y = a.output<int8_t>(0);
  return p;
}

}  // namespace vimtrt
