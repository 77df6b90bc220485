// What the definitions of the norms share: the arguments that all of them have, in the same places, and their limits.
#pragma once

#include <string>

#include "plugins/common/op.h"

namespace vimtrt {
namespace norm {

enum Attribute { kEpsilon };
enum Input { kHidden, kResidual, kGain };  // an operator's others follow
enum Output { kResidualOut, kY };

inline void check(const Arguments& a) {
  if (a.size('R') != 1 && a.size('R') != a.size('B')) {
    throw OpError("residual must have one row of tokens for each image, or one for all");
  }
  if (!(a.real(kEpsilon) > 0.0f && a.real(kEpsilon) < 1.0f)) {
    throw OpError("epsilon must lie between 0 and 1, got " + std::to_string(a.real(kEpsilon)));
  }
}

// All but the inputs behind kGain.
template <class Params>
Params bind(const Arguments& a) {
  Params p;
  p.rows = a.size('B') * a.size('L');
  p.tokens = a.narrow('L');
  p.features = a.narrow('D');
  p.residual_is_shared = a.size('R') == 1;
  p.epsilon = a.real(kEpsilon);
  p.hidden = a.input<float>(kHidden);
  p.residual = a.input<float>(kResidual);
  p.gain = a.input<float>(kGain);
  p.residual_out = a.output<float>(kResidualOut);
  p.y = a.output<int8_t>(kY);
  return p;
}

}  // namespace norm
}  // namespace vimtrt
