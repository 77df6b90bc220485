// libvimtrt_plugins.so: what TensorRT looks up in a plugin library (IPluginRegistry::loadLibrary), and two functions for builders.
#include "plugins/add_rms_norm_quant/plugin.h"
#include "plugins/bidirectional_scan/plugin.h"
#include "plugins/kscaled_linear/plugin.h"
#include "plugins/quant_conv1d_silu/plugin.h"

#define VIMTRT_EXPORT extern "C" __attribute__((visibility("default")))

namespace vimtrt {
namespace {

template <class P>
Plugin* make(const nvinfer1::PluginFieldCollection* fields) {
  return new P(fields);
}

}  // namespace
}  // namespace vimtrt

// Nothing is logged: ILogger differs between TensorRT 10 and 11.
VIMTRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

VIMTRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace vimtrt;
  static PluginCreator kscaled_linear(kscaled_linear_schema(), make<KScaledLinearPlugin>);
  static PluginCreator quant_conv1d_silu(quant_conv1d_silu_schema(), make<QuantConv1dSiLUPlugin>);
  static PluginCreator bidirectional_scan(bidirectional_scan_schema(), make<BidirectionalScanPlugin>);
  static PluginCreator add_rms_norm_quant(add_rms_norm_quant_schema(), make<AddRMSNormQuantPlugin>);
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&kscaled_linear, &quant_conv1d_silu, &bidirectional_scan,
                                                                &add_rms_norm_quant};
  count = static_cast<int32_t>(sizeof(creators) / sizeof(creators[0]));
  return creators;
}

// Why a plugin was refused, the last time; at most `size` bytes with the zero at the end.
VIMTRT_EXPORT void vimtrt_plugins_last_error(char* text, size_t size) {
  if (text == nullptr || size == 0) return;
  const std::string error = vimtrt::last_error();
  text[error.copy(text, size - 1)] = '\0';
}

VIMTRT_EXPORT const char* vimtrt_plugins_version() { return VIMTRT_VERSION; }
