// Binding of the fp32 scan. Arrays are checked here; the caller (pyvimtrt/model/scan.py) passes C-contiguous fp32.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "plugins/bindings/scan_fp32.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vimtrt {
namespace {

using Read3 = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Read2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Read1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Write3 = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Write2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Write1 = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

template <class Array>
bool has_shape(const Array& array, std::initializer_list<int64_t> shape) {
  size_t d = 0;
  for (int64_t size : shape) {
    if (static_cast<int64_t>(array.shape(d++)) != size) return false;
  }
  return true;
}

struct Call {
  ScanFp32Shape shape;
  ScanFp32Inputs in;
};

Call check(const Read3& u, const Read3& delta, const Read2& a, const Read3& b, const Read3& c, const Read1& d,
           bool reverse, int threads) {
  Call call;
  call.shape = {static_cast<int64_t>(u.shape(0)), static_cast<int64_t>(u.shape(1)), static_cast<int64_t>(u.shape(2)),
                static_cast<int32_t>(a.shape(1)), reverse};
  const ScanFp32Shape& s = call.shape;
  require(threads >= 1, "threads must be at least 1");
  require(scan_fp32_supports(s.states), "the fp32 scan supports 8 and 16 states");
  require(has_shape(delta, {s.batch, s.tokens, s.channels}), "delta must have the shape of u");
  require(has_shape(a, {s.channels, s.states}), "a must have the shape [E, N]");
  require(has_shape(b, {s.batch, s.tokens, s.states}) && has_shape(c, {s.batch, s.tokens, s.states}),
          "b and c must have the shape [B, L, N]");
  require(has_shape(d, {s.channels}), "d must have the shape [E]");
  call.in = {u.data(), delta.data(), a.data(), b.data(), c.data(), d.data()};
  return call;
}

}  // namespace

void bind_scan_fp32(nb::module_& module) {
  module.def("scan_fp32_supports", &scan_fp32_supports, "states"_a);
  module.def(
      "scan_fp32_forward",
      [](const Read3& u, const Read3& delta, const Read2& a, const Read3& b, const Read3& c, const Read1& d,
         const Write3& y, bool reverse, int threads) {
        const Call call = check(u, delta, a, b, c, d, reverse, threads);
        const ScanFp32Shape& s = call.shape;
        require(has_shape(y, {s.batch, s.tokens, s.channels}), "y must have the shape of u");
        nb::gil_scoped_release release;
        scan_fp32_forward(s, call.in, y.data(), threads);
      },
      "u"_a, "delta"_a, "a"_a, "b"_a, "c"_a, "d"_a, "y"_a, "reverse"_a, "threads"_a);
  module.def(
      "scan_fp32_backward",
      [](const Read3& u, const Read3& delta, const Read2& a, const Read3& b, const Read3& c, const Read1& d,
         const Read3& dy, const Write3& grad_u, const Write3& grad_delta, const Write2& grad_a, const Write3& grad_b,
         const Write3& grad_c, const Write1& grad_d, bool reverse, int threads) {
        const Call call = check(u, delta, a, b, c, d, reverse, threads);
        const ScanFp32Shape& s = call.shape;
        require(has_shape(dy, {s.batch, s.tokens, s.channels}) && has_shape(grad_u, {s.batch, s.tokens, s.channels}) &&
                    has_shape(grad_delta, {s.batch, s.tokens, s.channels}) &&
                    has_shape(grad_a, {s.channels, s.states}) && has_shape(grad_b, {s.batch, s.tokens, s.states}) &&
                    has_shape(grad_c, {s.batch, s.tokens, s.states}) && has_shape(grad_d, {s.channels}),
                "every gradient must have the shape of its input");
        nb::gil_scoped_release release;
        scan_fp32_backward(
            s, call.in, dy.data(),
            {grad_u.data(), grad_delta.data(), grad_a.data(), grad_b.data(), grad_c.data(), grad_d.data()}, threads);
      },
      "u"_a, "delta"_a, "a"_a, "b"_a, "c"_a, "d"_a, "dy"_a, "grad_u"_a, "grad_delta"_a, "grad_a"_a, "grad_b"_a,
      "grad_c"_a, "grad_d"_a, "reverse"_a, "threads"_a);
}

}  // namespace vimtrt
