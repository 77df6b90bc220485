// device.h for Python: what every test module offers beside its operators or plugins.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <map>
#include <stdexcept>
#include <string>

#include "tests/native/device.h"

namespace vimtrt {
namespace test {

template <class Choice>
Choice choose(const std::map<std::string, Choice>& choices, const std::string& name) {
  const auto found = choices.find(name);
  if (found == choices.end()) throw std::invalid_argument("there is no " + name + " to choose");
  return found->second;
}

inline Settings make_settings(const std::string& schedule, uint64_t seed, uint8_t poison, const std::string& placement,
                              const std::string& copies, size_t alignment, size_t shift, const std::string& shifted,
                              bool watch, bool guards, bool roles) {
  using cuda_on_cpu::Copies;
  using cuda_on_cpu::Placement;
  using cuda_on_cpu::Schedule;
  Settings s;
  s.of_double.schedule = choose<Schedule>(
      {{"ascending", Schedule::kAscending}, {"descending", Schedule::kDescending}, {"random", Schedule::kRandom}},
      schedule);
  s.of_double.seed = seed;
  s.of_double.poison = poison;
  s.of_double.placement = choose<Placement>({{"left", Placement::kLeft}, {"right", Placement::kRight}}, placement);
  s.of_double.copies =
      choose<Copies>({{"late", Copies::kLate}, {"early", Copies::kEarly}, {"random", Copies::kRandom}}, copies);
  s.of_double.watch = watch;
  s.of_double.roles = roles;
  s.alignment = alignment;
  s.shift = shift;
  s.shifted = shifted;
  s.guards = guards;
  return s;
}

using AnyArray = nanobind::ndarray<nanobind::c_contig, nanobind::device::cpu>;
using AnyConstArray = nanobind::ndarray<nanobind::ro, nanobind::c_contig, nanobind::device::cpu>;

inline void bind_device(nanobind::module_& m) {
  using namespace nanobind::literals;
  nanobind::exception<KernelError>(m, "KernelError");
  nanobind::class_<Settings>(m, "Settings");
  m.attr("world") = kWorld;
  m.def("describe_device", [] {
    nanobind::dict all;
    for (const auto& [name, value] : describe_device()) all[name.c_str()] = value;
    return all;
  });
  m.def("settings", make_settings, "schedule"_a = "ascending", "seed"_a = 0, "poison"_a = 0xff, "placement"_a = "right",
        "copies"_a = "late", "alignment"_a = 16, "shift"_a = 0, "shifted"_a = "", "watch"_a = true, "guards"_a = true,
        "roles"_a = true);
}

// Memory, streams and graphs of Python's own, for what runs more than one operator.
inline void bind_memory(nanobind::module_& m) {
  using namespace nanobind::literals;
  m.def("begin", begin, "settings"_a);
  m.def("finish", [] { finish(0); });
  nanobind::class_<Memory>(m, "Memory")
      .def(nanobind::init<const Settings&, size_t, size_t, std::string>(), "settings"_a, "bytes"_a, "element_bytes"_a,
           "name"_a)
      .def_prop_ro("bytes", &Memory::bytes)
      .def_prop_ro("name", &Memory::name)
      .def_prop_ro("address", [](const Memory& memory) { return reinterpret_cast<uintptr_t>(memory.data()); })
      .def(
          "write",
          [](Memory& memory, const AnyConstArray& source) {
            if (source.nbytes() != memory.bytes()) throw std::invalid_argument("sizes differ");
            memory.write(source.data());
          },
          "source"_a)
      .def(
          "read",
          [](const Memory& memory, const AnyArray& target) {
            if (target.nbytes() != memory.bytes()) throw std::invalid_argument("sizes differ");
            memory.read(target.data());
          },
          "target"_a)
      .def("poison", &Memory::poison, "pattern"_a)
      .def("protect", &Memory::protect);
  nanobind::class_<Graph>(m, "Graph");
  nanobind::class_<Stream>(m, "Stream")
      .def(nanobind::init<>())
      .def("wait", &Stream::wait)
      .def("begin_capture", &Stream::begin_capture)
      .def("end_capture", &Stream::end_capture)  // Python owns what is returned
      .def("launch", &Stream::launch, "graph"_a)
      .def("milliseconds", &Stream::milliseconds, "graph"_a, "launches"_a)
      .def(
          "copy",
          [](Stream& stream, Memory& target, const Memory& source) {
            if (target.bytes() != source.bytes()) throw std::invalid_argument("sizes differ");
            stream.copy(target.data(), source.data(), source.bytes());
          },
          "target"_a, "source"_a);
}

}  // namespace test
}  // namespace vimtrt
