// All operators, by the list in operators.inc.
#pragma once

#include <string>
#include <vector>

#include "plugins/common/op.h"

namespace vimtrt {

const std::vector<const OpDef*>& operators();

// Raises OpError for a name that no operator has.
const OpDef& operator_named(const std::string& name);

struct CpuOperator;
const CpuOperator& cpu_operator_of(const OpDef& op);  // cpu_operators.cpp

struct CudaOperator;
const CudaOperator& cuda_operator_of(const OpDef& op);  // cuda_operators.cpp

}  // namespace vimtrt
