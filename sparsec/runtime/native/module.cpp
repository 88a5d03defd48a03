// The Python module: the types Call and Table, and a way for tests to launch with a function of their own.
#define PY_SSIZE_T_CLEAN
#include "table.h"

namespace sparsec {

struct TableObject {
  PyObject_HEAD
  Table* table;
};

// Table(names, schedules, records, modes, classes): input names, the schedules that a person set, what has
// `generation`, functions that say how deterministic torch must be, and the classes of tensors that are only data.
static PyObject* new_table(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *names, *schedules, *records, *modes, *classes;
  if (!PyArg_ParseTuple(
          args, "O!O!OO!O!", &PyTuple_Type, &names, &PyDict_Type, &schedules, &records, &PyTuple_Type, &modes,
          &PyTuple_Type, &classes))
    return nullptr;
  PyObject* self = type->tp_alloc(type, 0);
  if (!self) return nullptr;
  for (PyObject* x : {names, schedules, records, modes, classes}) Py_INCREF(x);
  auto* table = new Table();
  table->names = names, table->schedules = schedules, table->records = records;
  table->modes = modes, table->classes = classes;
  reinterpret_cast<TableObject*>(self)->table = table;
  return self;
}

static void free_table(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete reinterpret_cast<TableObject*>(self)->table;
  type->tp_free(self);
  Py_DECREF(type);
}

static bool unpacked(PyObject* given, std::vector<const at::TensorBase*>& found) {
  if (!PyList_Check(given) && !PyTuple_Check(given)) return false;
  for (Py_ssize_t n = 0; n < PySequence_Fast_GET_SIZE(given); ++n) {
    PyObject* x = PySequence_Fast_GET_ITEM(given, n);
    if (!is_tensor(x)) return false;
    found.push_back(&tensor_of(x));
    if (found.back()->layout() != at::kStrided || !plain(*found.back())) return false;
  }
  return true;
}

// find(tensors, tag): what was kept for tensors of this layout, or None.
static PyObject* find(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "find takes tensors and a tag");
  try {
    std::vector<const at::TensorBase*> tensors;
    if (!unpacked(args[0], tensors)) Py_RETURN_NONE;
    auto entry = reinterpret_cast<TableObject*>(self)->table->find(tensors.data(), tensors.size(), args[1]);
    if (PyErr_Occurred()) return nullptr;
    if (!entry) Py_RETURN_NONE;
    Py_INCREF(entry->payload);
    return entry->payload;
  } catch (...) {
    Py_RETURN_NONE;
  }
}

// keep(tensors, tag, payload): to be found again.
static PyObject* keep(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) return PyErr_Format(PyExc_TypeError, "keep takes tensors, a tag and a payload");
  try {
    std::vector<const at::TensorBase*> tensors;
    if (unpacked(args[0], tensors)) reinterpret_cast<TableObject*>(self)->table->keep(tensors, args[1], args[2]);
  } catch (...) {
  }
  if (PyErr_Occurred()) return nullptr;
  Py_RETURN_NONE;
}

// The results in the variant's order: one tensor, or a tuple.
static PyObject* results(const Call& call, const std::vector<at::TensorBase>& made) {
  if (call.order.size() == 1) return THPVariable_Wrap(made[call.order[0]]);
  Held found(PyTuple_New(call.order.size()));
  for (size_t n = 0; found.object && n < call.order.size(); ++n) {
    PyObject* output = THPVariable_Wrap(made[call.order[n]]);
    if (!output) return nullptr;
    PyTuple_SET_ITEM(found.object, n, output);
  }
  Py_XINCREF(found.object);
  return found.object;
}

// call(inputs, tag): the results for inputs by name; None, with nothing done, where the call must go another way.
static PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 2 || !PyDict_CheckExact(args[0])) return PyErr_Format(PyExc_TypeError, "call takes inputs and a tag");
  if (args[1] != Py_None && !PyLong_CheckExact(args[1])) Py_RETURN_NONE;
  Table& table = *reinterpret_cast<TableObject*>(self)->table;
  try {
    size_t most = PyTuple_GET_SIZE(table.names);
    auto* tensors = static_cast<const at::TensorBase**>(alloca((most + 1) * sizeof(void*)));
    std::shared_ptr<Entry> entry;
    if (table.tensors(args[0], tensors)) entry = table.find(tensors, most, args[1]);
    CallObject* found = entry ? native_of(*entry) : nullptr;
    if (PyErr_Occurred()) return nullptr;
    if (!found) Py_RETURN_NONE;
    std::vector<at::TensorBase> made;  // the entry holds the call where another thread drops it meanwhile
    if (found->call->run(tensors, made)) return results(*found->call, made);
    if (PyErr_Occurred()) return nullptr;
  } catch (...) {  // out of memory, say: the other way says so in torch's words
  }
  Py_RETURN_NONE;
}

static int no_launch(
    void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**) {
  return 0;
}

// launch_with(address): that of a function to call in place of CUDA's cuLaunchKernel; None for one that does nothing,
// 0 for CUDA's own again.
static PyObject* launch_with(PyObject*, PyObject* address) {
  unsigned long long given =
      address == Py_None ? reinterpret_cast<uintptr_t>(&no_launch) : PyLong_AsUnsignedLongLong(address);
  if (PyErr_Occurred()) return nullptr;
  driver = Driver{};
  if (given) driver.launch = reinterpret_cast<LaunchKernel>(given);
  return PyBool_FromLong(given || driver.load());
}

// argument_sizes(function): the sizes in bytes of a kernel's arguments; None where the driver does not tell.
static PyObject* argument_sizes(PyObject*, PyObject* function) {
  auto handle = reinterpret_cast<void*>(PyLong_AsUnsignedLongLong(function));
  if (PyErr_Occurred()) return nullptr;
  if (!driver.argument) Py_RETURN_NONE;
  Held found(PyList_New(0));
  size_t offset = 0, size = 0;
  for (size_t n = 0; found.object && driver.argument(handle, n, &offset, &size) == 0; ++n) {
    Held value(PyLong_FromSize_t(size));
    if (!value.object || PyList_Append(found.object, value.object)) return nullptr;
  }
  return found.object ? PyList_AsTuple(found.object) : nullptr;
}

// pointer(tensor): its address, as read from here.
static PyObject* pointer(PyObject*, PyObject* tensor) {
  if (!is_tensor(tensor)) return PyErr_Format(PyExc_TypeError, "pointer takes a tensor");
  return PyLong_FromVoidPtr(const_cast<void*>(tensor_of(tensor).const_data_ptr()));
}

template <typename F>
static PyCFunction as_function(F f) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

static PyMethodDef call_methods[] = {{"run", run_call, METH_O, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyType_Slot call_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(new_call)}, {Py_tp_dealloc, reinterpret_cast<void*>(free_call)},
    {Py_tp_methods, call_methods}, {0, nullptr}};
static PyType_Spec call_spec = {"sparsec_native.Call", sizeof(CallObject), 0, Py_TPFLAGS_DEFAULT, call_slots};

static PyMethodDef table_methods[] = {
    {"find", as_function(find), METH_FASTCALL, nullptr}, {"keep", as_function(keep), METH_FASTCALL, nullptr},
    {"call", as_function(call), METH_FASTCALL, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyType_Slot table_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(new_table)}, {Py_tp_dealloc, reinterpret_cast<void*>(free_table)},
    {Py_tp_methods, table_methods}, {0, nullptr}};
static PyType_Spec table_spec = {"sparsec_native.Table", sizeof(TableObject), 0, Py_TPFLAGS_DEFAULT, table_slots};

static PyMethodDef methods[] = {
    {"launch_with", launch_with, METH_O, nullptr}, {"pointer", pointer, METH_O, nullptr},
    {"argument_sizes", argument_sizes, METH_O, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "sparsec_native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace sparsec

PyMODINIT_FUNC PyInit_sparsec_native() {
  using namespace sparsec;
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  call_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&call_spec));
  PyObject* table_type = PyType_FromSpec(&table_spec);
  if (!call_type || !table_type || PyModule_AddObjectRef(module, "Call", reinterpret_cast<PyObject*>(call_type)) ||
      PyModule_AddObjectRef(module, "Table", table_type))
    return nullptr;
  driver.load();
  return module;
}
