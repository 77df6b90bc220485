// What the test modules share: the settings of the double as Python gives them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <map>
#include <stdexcept>
#include <string>

#include "plugins/cuda_on_cpu/control.h"

namespace vimtrt {

// What the launch of a faulty kernel raises.
struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct PythonSettings {
  cuda_on_cpu::Settings settings;
  size_t alignment = 16;  // of device memory, at least that of its elements
  size_t shift = 0;       // elements between there and the first one used: with 1 a pointer is aligned to no more than its elements
  std::string shifted;    // the one array that is shifted, instead of all
};

template <class Choice>
Choice choose(const std::map<std::string, Choice>& choices, const std::string& name) {
  const auto found = choices.find(name);
  if (found == choices.end()) throw std::invalid_argument("there is no " + name + " to choose");
  return found->second;
}

inline PythonSettings make_settings(const std::string& schedule, uint64_t seed, uint8_t poison, const std::string& placement,
                                    const std::string& copies, size_t alignment, size_t shift, const std::string& shifted, bool watch) {
  using cuda_on_cpu::Copies;
  using cuda_on_cpu::Placement;
  using cuda_on_cpu::Schedule;
  PythonSettings python;
  python.settings.schedule = choose<Schedule>(
      {{"ascending", Schedule::kAscending}, {"descending", Schedule::kDescending}, {"random", Schedule::kRandom}}, schedule);
  python.settings.seed = seed;
  python.settings.poison = poison;
  python.settings.placement = choose<Placement>({{"left", Placement::kLeft}, {"right", Placement::kRight}}, placement);
  python.settings.copies = choose<Copies>({{"late", Copies::kLate}, {"early", Copies::kEarly}, {"random", Copies::kRandom}}, copies);
  python.settings.watch = watch;
  python.alignment = alignment;
  python.shift = shift;
  python.shifted = shifted;
  return python;
}

inline void bind_settings(nanobind::module_& m) {
  using namespace nanobind::literals;
  nanobind::exception<KernelError>(m, "KernelError");
  nanobind::class_<PythonSettings>(m, "Settings");
  m.def("settings", make_settings, "schedule"_a = "ascending", "seed"_a = 0, "poison"_a = 0xff, "placement"_a = "right",
        "copies"_a = "late", "alignment"_a = 16, "shift"_a = 0, "shifted"_a = "", "watch"_a = true);
}

}  // namespace vimtrt
