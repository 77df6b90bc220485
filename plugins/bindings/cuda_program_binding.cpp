#include "plugins/bindings/cuda_program_binding.h"

#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>

#include "plugins/bindings/program_binding.h"
#include "plugins/executor/cuda_program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vimtrt {
namespace {

using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Addresses = std::vector<uintptr_t>;

void enqueue(const CudaProgram& program, int64_t batch, uintptr_t constants, uintptr_t memory, const Addresses& inputs,
             const Addresses& outputs, uintptr_t stream, std::optional<size_t> step) {
  CudaProgram::Placement placement;
  placement.constants = reinterpret_cast<const uint8_t*>(constants);
  placement.memory = reinterpret_cast<uint8_t*>(memory);
  for (const uintptr_t address : inputs) placement.inputs.push_back(reinterpret_cast<const void*>(address));
  for (const uintptr_t address : outputs) placement.outputs.push_back(reinterpret_cast<void*>(address));
  const auto handle = reinterpret_cast<cuda::Stream>(stream);
  if (step.has_value()) {
    program.enqueue(batch, placement, handle, *step, *step + 1);
  } else {
    program.enqueue(batch, placement, handle);
  }
}

}  // namespace

void bind_cuda_program(nb::module_& module) {
  using NoGil = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<CudaProgram> program(module, "Program", "A list of operators over values, started on a GPU's stream.");
  program.def(nb::init<int64_t>(), "max_constant_bytes"_a = Program::kMaxConstantBytes)
      .def(
          "write_constants",
          [](CudaProgram& self, const Bytes& target) {
            if (static_cast<int64_t>(target.size()) != self.constant_bytes()) {
              throw std::invalid_argument("the target has " + std::to_string(target.size()) + " bytes, expected " +
                                          std::to_string(self.constant_bytes()));
            }
            self.write_constants(target.data());
          },
          "target"_a)
      .def("memory_bytes", &CudaProgram::memory_bytes, "batch"_a, NoGil())
      .def("enqueue", &enqueue, "batch"_a, "constants"_a, "memory"_a, "inputs"_a, "outputs"_a, "stream"_a,
           "step"_a = nb::none(), NoGil())
      .def_prop_ro_static("alignment", [](nb::handle) { return CudaProgram::kAlignment; });
  bind_program(program);
}

}  // namespace vimtrt
