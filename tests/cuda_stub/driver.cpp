// CUDA's driver without a device, as far as torch and Triton call it. A kernel that Triton compiled
// is loaded by name alone.

#include <cstdio>

#include "device.h"

using namespace stub;

extern "C" {

CUresult cuDeviceGet(CUdevice* device, int index) {
  *device = index;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  *value = attribute(which);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

// A device's one context is named by its number, from 1 on.
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = reinterpret_cast<CUcontext>(intptr_t(device + 1));
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) { return cuDevicePrimaryCtxRetain(context, current); }

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute which, CUdeviceptr pointer) {
  if (which != CU_POINTER_ATTRIBUTE_DEVICE_POINTER || !in_memory(pointer)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *static_cast<CUdeviceptr*>(value) = pointer;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult status, const char** text) {
  thread_local char said[64];
  std::snprintf(said, sizeof(said), "the stub's CUDA refuses it with error %d", int(status));
  *text = said;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void*) {
  *module = nullptr;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  *function = reinterpret_cast<CUfunction>(new Kernel{name});
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? kThreads : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (value > kSharedOptin) return CUDA_ERROR_INVALID_VALUE;
  reinterpret_cast<Kernel*>(function)->shared = value;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction function, void**, void**) {
  return CUresult(launch(*reinterpret_cast<const Kernel*>(function),
                         dim3(c->gridDimX, c->gridDimY, c->gridDimZ),
                         dim3(c->blockDimX, c->blockDimY, c->blockDimZ), c->sharedMemBytes,
                         c->hStream));
}

// What torch and Triton ask for when they load, and nothing here calls.
CUresult unsupported() { return CUDA_ERROR_NOT_SUPPORTED; }

#define UNSUPPORTED(name) __asm__(".globl " #name "\n.set " #name ", unsupported")
UNSUPPORTED(cuCtxGetLimit);
UNSUPPORTED(cuCtxSetCurrent);
UNSUPPORTED(cuCtxSetLimit);
UNSUPPORTED(cuLaunchCooperativeKernel);
UNSUPPORTED(cuLaunchKernel);
UNSUPPORTED(cuLinkAddData_v2);
UNSUPPORTED(cuLinkComplete);
UNSUPPORTED(cuLinkCreate_v2);
UNSUPPORTED(cuModuleLoad);
UNSUPPORTED(cuModuleLoadDataEx);
UNSUPPORTED(cuModuleUnload);
UNSUPPORTED(cuOccupancyMaxActiveBlocksPerMultiprocessor);
UNSUPPORTED(cuTensorMapEncodeTiled);

}  // extern "C"
