// A call that was made before: what it allocates and what it launches.
#pragma once
#include "launch.h"
#include "tensor.h"

#include <alloca.h>

namespace sparsec {

// Whether somebody (a profiler) wants to hear of each launch, which only Triton's own launch tells them.
inline bool watched(PyObject* runtime) {
  static PyObject* const names[2] = {
      PyUnicode_InternFromString("launch_enter_hook"), PyUnicode_InternFromString("launch_exit_hook")};
  static PyObject* const calls = PyUnicode_InternFromString("calls");
  for (PyObject* name : names) {
    PyObject* hook = PyObject_GetAttr(runtime, name);
    if (hook && hook != Py_None) {
      PyObject* each = PyObject_GetAttr(hook, calls);
      int any = each ? PyObject_IsTrue(each) : 1;
      Py_XDECREF(each);
      if (any) {
        PyErr_Clear();
        Py_DECREF(hook);
        return true;
      }
    }
    Py_XDECREF(hook);
  }
  PyErr_Clear();
  return false;
}

struct Call {
  at::Device device{at::kCPU};
  size_t inputs = 0;
  std::vector<Layout> outputs;
  std::vector<size_t> order;  // of the results, among the outputs
  std::optional<Layout> block;  // the memory of everything else
  std::vector<uint64_t> starts;  // in the block
  std::vector<Launch> launches;
  std::vector<Pointer> pointers;
  std::vector<Map> maps;
  std::vector<char> packed;  // all arguments
  PyObject* runtime = nullptr;  // Triton's knobs
  PyObject* held = nullptr;  // what keeps the kernels loaded

  ~Call() {
    for (Map& map : maps) Py_XDECREF(map.encode);
    Py_XDECREF(runtime);
    Py_XDECREF(held);
  }

  bool here() const {
#ifdef SPARSEC_CUDA
    if (device.is_cuda()) return c10::cuda::current_device() == device.index() && driver.ready();
#endif
    return true;
  }

  void* stream() const {
    void* found = nullptr;
#ifdef SPARSEC_CUDA
    if (device.is_cuda()) aoti_torch_get_current_cuda_stream(device.index(), &found);
#endif
    return found;
  }

  // Allocates, launches and fills `made`; false where nothing was launched, with a Python error set if there was one.
  bool run(const at::TensorBase* const* given, std::vector<at::TensorBase>& made) {
    auto* addresses = static_cast<uint64_t*>(alloca((inputs + outputs.size() + starts.size() + 1) * sizeof(uint64_t)));
    uint64_t bits = 0;
    size_t count = 0;
    for (; count < inputs; ++count) bits |= addresses[count] = reinterpret_cast<uint64_t>(given[count]->const_data_ptr());
    if (bits & 15 || watched(runtime) || !here()) return false;
    made.reserve(outputs.size());
    for (const Layout& output : outputs) {
      made.push_back(output.empty());
      addresses[count++] = reinterpret_cast<uint64_t>(made.back().const_data_ptr());
    }
    at::TensorBase held;
    if (block) {
      held = block->empty();
      auto base = reinterpret_cast<uint64_t>(held.const_data_ptr());
      for (uint64_t start : starts) addresses[count++] = base + start;
    }
    auto raw = reinterpret_cast<uintptr_t>(alloca(packed.size() + MAP_ALIGNMENT));
    auto* own = reinterpret_cast<char*>((raw + MAP_ALIGNMENT - 1) & ~(MAP_ALIGNMENT - 1));
    std::memcpy(own, packed.data(), packed.size());
    for (const Pointer& x : pointers) std::memcpy(own + x.offset, &addresses[x.source], sizeof(uint64_t));
    for (Map& map : maps) {
      const char* found = map.at(addresses[map.source]);
      if (!found) return false;
      std::memcpy(own + map.offset, found, MAP_BYTES);
    }
    return launched(own);
  }

  bool launched(char* own) const {
    void* on = stream();
    int code = 0;
    PyThreadState* state = PyEval_SaveThread();
    for (const Launch& launch : launches) {
      code = launch(own, on);
      if (code) break;
    }
    PyEval_RestoreThread(state);
    if (code) driver.raise(code);
    return code == 0;
  }
};

}  // namespace sparsec
