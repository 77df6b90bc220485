#include "plugins/operators.h"

namespace vimtrt {

#define VIMTRT_OPERATOR(folder) const OpDef& folder##_op();
#include "plugins/operators.inc"
#undef VIMTRT_OPERATOR

const std::vector<const OpDef*>& operators() {
  static const std::vector<const OpDef*> all = {
#define VIMTRT_OPERATOR(folder) &folder##_op(),
#include "plugins/operators.inc"
#undef VIMTRT_OPERATOR
  };
  return all;
}

const OpDef& operator_named(const std::string& name) {
  std::string known;
  for (const OpDef* op : operators()) {
    if (op->name == name) return *op;
    known += (known.empty() ? "" : ", ") + op->name;
  }
  throw OpError("there is no operator " + name + "; the operators are " + known);
}

}  // namespace vimtrt
