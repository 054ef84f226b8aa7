// String arguments of ops, on the stable ABI.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "arguments.h"

namespace rhovae {

// Which of `names` the string is that an op is called with, whose handle is the op's to free. (An
// argument of type std::string is converted by way of one on the heap that nobody frees: 32 bytes a
// call.)
inline int take_one_of(std::initializer_list<std::string_view> names, StringHandle handle) {
  size_t length = 0;
  const char* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  const auto* found = std::find(names.begin(), names.end(), std::string_view(data, length));
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  require(found != names.end());
  return int(found - names.begin());
}

}  // namespace rhovae
