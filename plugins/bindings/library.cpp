// libvimtrt_plugins.so: what TensorRT looks up in a plugin library (IPluginRegistry::loadLibrary), and
// two functions for builders.
#include <memory>

#include "plugins/bindings/plugin.h"
#include "plugins/operators.h"

#define VIMTRT_EXPORT extern "C" __attribute__((visibility("default")))

// Nothing is logged: ILogger differs between TensorRT 10 and 11.
VIMTRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

VIMTRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  struct All {
    std::vector<std::unique_ptr<vimtrt::PluginCreator>> owned;
    std::vector<nvinfer1::IPluginCreatorInterface*> creators;
    All() {
      for (const vimtrt::OpDef* op : vimtrt::operators()) {
        owned.push_back(std::make_unique<vimtrt::PluginCreator>(*op));
        creators.push_back(owned.back().get());
      }
    }
  };
  static const All all;
  count = static_cast<int32_t>(all.creators.size());
  return all.creators.data();
}

// Why a plugin was refused, the last time; at most `size` bytes with the zero at the end.
VIMTRT_EXPORT void vimtrt_plugins_last_error(char* text, size_t size) {
  if (text == nullptr || size == 0) return;
  const std::string error = vimtrt::last_error();
  text[error.copy(text, size - 1)] = '\0';
}

VIMTRT_EXPORT const char* vimtrt_plugins_version() { return VIMTRT_VERSION; }
