// rhovae_kernels._C: importing it registers the kernels; it tells how it was built. Of Python's
// interface it uses the stable part (Py_LIMITED_API), so that one build serves every version.

#include <Python.h>

#include <exception>

#include "cpu/simd_types.h"

namespace {

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue(
      "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "compiler", RHOVAE_COMPILER, "flags", RHOVAE_FLAGS,
      "torch", RHOVAE_TORCH, "torch_target", "2.11", "cuda", RHOVAE_CUDA, "architectures",
      RHOVAE_ARCHITECTURES, "targets", RHOVAE_TARGETS, "instructions",
      rhovae::name_of(rhovae::cpu_target()));
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "How this extension was built (compiler, flags, CUDA version and architectures, the torch it "
     "was built against, the instruction sets of its CPU kernels), and the one of them that runs "
     "on this machine."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "Compiled kernels of rhovae_kernels; importing this registers them.",
    -1,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  try {
    rhovae::cpu_target();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
    return nullptr;
  }
  return PyModule_Create(&module);
}
