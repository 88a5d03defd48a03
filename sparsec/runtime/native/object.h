// The Python type of a call: made from examples of its tensors and from its packed launches.
#pragma once
#include "call.h"

namespace sparsec {

struct CallObject {
  PyObject_HEAD
  Call* call;
};

inline PyTypeObject* call_type = nullptr;

// A reference that is given up at the end of its scope.
struct Held {
  PyObject* object;
  explicit Held(PyObject* x) : object(x) {}
  Held(const Held&) = delete;
  ~Held() { Py_XDECREF(object); }
};

inline bool launches_of(Call& call, PyObject* given) {
  for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(given); ++n) {
    Launch launch{};
    unsigned long long function;
    PyObject *block, *arguments, *pointers, *maps;
    if (!PyArg_ParseTuple(
            PyTuple_GET_ITEM(given, n), "K(III)IISO!O!O!", &function, &launch.grid[0], &launch.grid[1], &launch.grid[2],
            &launch.threads, &launch.shared, &block, &PyTuple_Type, &arguments, &PyTuple_Type, &pointers, &PyTuple_Type,
            &maps))
      return false;
    launch.function = reinterpret_cast<void*>(function);
    size_t start = (call.packed.size() + MAP_ALIGNMENT - 1) / MAP_ALIGNMENT * MAP_ALIGNMENT;
    call.packed.resize(start);
    call.packed.insert(call.packed.end(), PyBytes_AS_STRING(block), PyBytes_AS_STRING(block) + PyBytes_GET_SIZE(block));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arguments); ++i)
      launch.arguments.push_back(start + PyLong_AsSize_t(PyTuple_GET_ITEM(arguments, i)));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(pointers); ++i) {
      Pointer pointer{};
      if (!PyArg_ParseTuple(PyTuple_GET_ITEM(pointers, i), "nn", &pointer.offset, &pointer.source)) return false;
      call.pointers.push_back({start + pointer.offset, pointer.source});
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(maps); ++i) {
      Map map{};
      if (!PyArg_ParseTuple(PyTuple_GET_ITEM(maps, i), "nnO", &map.offset, &map.source, &map.encode)) return false;
      map.offset += start;
      Py_INCREF(map.encode);
      call.maps.push_back(std::move(map));
    }
    if (launch.arguments.size() > Launch::MOST_ARGUMENTS) {
      PyErr_SetString(PyExc_ValueError, "a kernel of so many arguments is not launched from here");
      return false;
    }
    call.launches.push_back(std::move(launch));
  }
  return !PyErr_Occurred();
}

// Call(inputs, outputs, order, block or None, starts, launches, runtime, held): tuples, of tensors as examples, what
// has Triton's hooks, and what is to be kept alive.
inline PyObject* new_call(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *inputs, *outputs, *order, *block, *starts, *launches, *runtime, *held;
  if (!PyArg_ParseTuple(
          args, "O!O!O!OO!O!OO", &PyTuple_Type, &inputs, &PyTuple_Type, &outputs, &PyTuple_Type, &order, &block,
          &PyTuple_Type, &starts, &PyTuple_Type, &launches, &runtime, &held))
    return nullptr;
  Held made(type->tp_alloc(type, 0));
  if (!made.object) return nullptr;
  Call& call = *(reinterpret_cast<CallObject*>(made.object)->call = new Call());
  for (PyObject* each : {inputs, outputs})
    for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(each); ++n)
      if (!is_tensor(PyTuple_GET_ITEM(each, n))) return PyErr_Format(PyExc_TypeError, "inputs and outputs are tensors");
  call.inputs = PyTuple_GET_SIZE(inputs);
  call.device = tensor_of(PyTuple_GET_ITEM(inputs, 0)).device();
  for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(outputs); ++n)
    call.outputs.emplace_back(tensor_of(PyTuple_GET_ITEM(outputs, n)));
  for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(order); ++n)
    call.order.push_back(PyLong_AsSize_t(PyTuple_GET_ITEM(order, n)));
  if (block != Py_None) call.block.emplace(tensor_of(block));
  for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(starts); ++n)
    call.starts.push_back(PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(starts, n)));
  Py_INCREF(call.runtime = runtime);
  Py_INCREF(call.held = held);
  if (PyErr_Occurred() || !launches_of(call, launches)) return nullptr;
  Py_INCREF(made.object);
  return made.object;
}

inline void free_call(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete reinterpret_cast<CallObject*>(self)->call;
  type->tp_free(self);
  Py_DECREF(type);
}

// The outputs as a list; None, with nothing done, where the call must go another way.
inline PyObject* run_call(PyObject* self, PyObject* given) {
  Call& call = *reinterpret_cast<CallObject*>(self)->call;
  Held fast(PySequence_Fast(given, "run takes the tensors of a call in order"));
  if (!fast.object) return nullptr;
  size_t count = PySequence_Fast_GET_SIZE(fast.object);
  if (count != call.inputs) return PyErr_Format(PyExc_ValueError, "%zu tensors, not %zu", call.inputs, count);
  auto* tensors = static_cast<const at::TensorBase**>(alloca((count + 1) * sizeof(void*)));
  for (size_t n = 0; n < count; ++n) {
    PyObject* x = PySequence_Fast_GET_ITEM(fast.object, n);
    if (!is_tensor(x)) return PyErr_Format(PyExc_TypeError, "run takes tensors, not a %s", Py_TYPE(x)->tp_name);
    tensors[n] = &tensor_of(x);
  }
  std::vector<at::TensorBase> made;
  try {
    if (!call.run(tensors, made)) {
      if (PyErr_Occurred()) return nullptr;
      Py_RETURN_NONE;
    }
    Held found(PyList_New(made.size()));
    for (size_t n = 0; found.object && n < made.size(); ++n) {
      PyObject* output = THPVariable_Wrap(made[n]);
      if (!output) return nullptr;
      PyList_SET_ITEM(found.object, n, output);
    }
    Py_XINCREF(found.object);
    return found.object;
  } catch (...) {  // out of memory, say: the other way says so in torch's words
    Py_RETURN_NONE;
  }
}

}  // namespace sparsec
