// String arguments of ops, on the stable ABI.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <string_view>

namespace rhovae {

// Whether the string that an op is called with, whose handle is the op's to free, is `text`. (An
// argument of type std::string is converted by way of one on the heap that nobody frees: 32 bytes a
// call.)
inline bool take_is(StringHandle handle, std::string_view text) {
  size_t length = 0;
  const char* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  const bool same = std::string_view(data, length) == text;
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return same;
}

}  // namespace rhovae
