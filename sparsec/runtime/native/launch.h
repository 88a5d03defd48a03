// Kernels with their arguments packed once; a launch changes addresses, and what encodes addresses, in a copy.
#pragma once
#include <Python.h>
#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

namespace sparsec {

constexpr size_t MAP_BYTES = 128, MAP_ALIGNMENT = 64, MOST_MAPS = 64;

using LaunchKernel = int (*)(
    void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared, void* stream,
    void** arguments, void** extra);

// The functions of CUDA's driver that are called; a test puts its own in place of them.
struct Driver {
  LaunchKernel launch = nullptr;
  int (*context)(void**) = nullptr;
  int (*describe)(int, const char**) = nullptr;
  int (*argument)(void*, size_t, size_t*, size_t*) = nullptr;  // of drivers of CUDA 12.4 and later

  bool load() {
    if (launch) return true;
    void* library = dlopen("libcuda.so.1", RTLD_LAZY);
    if (!library) return false;
    context = reinterpret_cast<int (*)(void**)>(dlsym(library, "cuCtxGetCurrent"));
    describe = reinterpret_cast<int (*)(int, const char**)>(dlsym(library, "cuGetErrorString"));
    argument =
        reinterpret_cast<int (*)(void*, size_t, size_t*, size_t*)>(dlsym(library, "cuFuncGetParamInfo"));
    launch = reinterpret_cast<LaunchKernel>(dlsym(library, "cuLaunchKernel"));
    return launch != nullptr;
  }

  // A thread that never used CUDA has no context yet; the driver's functions, unlike the runtime's, do not make one.
  bool ready() const {
    void* current = nullptr;
    return !context || (context(&current) == 0 && current);
  }

  void raise(int code) const {
    const char* said = nullptr;
    if (describe) describe(code, &said);
    PyErr_Format(PyExc_RuntimeError, "CUDA error %d at a kernel's launch: %s", code, said ? said : "unknown");
  }
};

inline Driver driver;

struct Pointer {
  size_t offset;  // in the call's arguments
  size_t source;  // which address
};

// A tensor map (TMA descriptor): made from an address by a Python function, and kept by address.
struct Map {
  size_t offset, source;
  PyObject* encode;
  std::unordered_map<uint64_t, std::array<char, MAP_BYTES>> made;

  // The map at an address; null with a Python error set.
  const char* at(uint64_t address) {
    auto found = made.find(address);
    if (found != made.end()) return found->second.data();
    PyObject* bytes = PyObject_CallFunction(encode, "K", static_cast<unsigned long long>(address));
    if (!bytes) return nullptr;
    if (!PyBytes_Check(bytes) || PyBytes_GET_SIZE(bytes) != static_cast<Py_ssize_t>(MAP_BYTES)) {
      Py_DECREF(bytes);
      PyErr_SetString(PyExc_TypeError, "a tensor map is 128 bytes");
      return nullptr;
    }
    if (made.size() >= MOST_MAPS) made.clear();
    auto& kept = made[address];
    std::memcpy(kept.data(), PyBytes_AS_STRING(bytes), MAP_BYTES);
    Py_DECREF(bytes);
    return kept.data();
  }
};

struct Launch {
  void* function;
  unsigned grid[3], threads, shared;
  std::vector<size_t> arguments;  // the offset of each in the call's arguments

  int operator()(char* packed, void* stream) const {
    void* given[MOST_ARGUMENTS];
    for (size_t n = 0; n < arguments.size(); ++n) given[n] = packed + arguments[n];
    return driver.launch(function, grid[0], grid[1], grid[2], threads, 1, 1, shared, stream, given, nullptr);
  }

  static constexpr size_t MOST_ARGUMENTS = 128;
};

}  // namespace sparsec
