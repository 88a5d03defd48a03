// Calls by the shapes, strides, dtypes and devices of their tensors: recognising one without Python.
#pragma once
#include "object.h"

#include <memory>

namespace sparsec {

constexpr size_t MOST_CALLS = 4096;

inline bool by_value(PyObject* tag) {
  return PyLong_CheckExact(tag) || PyTuple_CheckExact(tag);
}

struct Entry {
  std::vector<Layout> layouts;
  PyObject* tag;  // what else tells calls apart: an integer, a tuple of them, or an object that is only ever itself
  PyObject* payload;
  PyObject* native = nullptr;  // the payload's `native`, once it has one

  Entry(const std::vector<const at::TensorBase*>& tensors, PyObject* a, PyObject* b) : tag(a), payload(b) {
    for (auto* x : tensors) layouts.emplace_back(*x);
    Py_INCREF(tag);
    Py_INCREF(payload);
  }
  Entry(const Entry&) = delete;
  ~Entry() {
    Py_DECREF(tag);
    Py_DECREF(payload);
    Py_XDECREF(native);
  }

  bool fits(const at::TensorBase* const* tensors, size_t count, PyObject* other) const {
    if (count != layouts.size()) return false;
    if (tag != other && (!by_value(tag) || !by_value(other) || PyObject_RichCompareBool(tag, other, Py_EQ) != 1))
      return false;
    for (size_t n = 0; n < count; ++n)
      if (!layouts[n].fits(*tensors[n])) return false;
    return true;
  }
};

inline uint64_t hash_of(const at::TensorBase* const* tensors, size_t count, PyObject* tag) {
  uint64_t hash = by_value(tag) ? PyObject_Hash(tag) : reinterpret_cast<uint64_t>(tag);
  for (size_t n = 0; n < count; ++n) mix(hash, *tensors[n]);
  return hash;
}

struct Table {
  PyObject *names, *schedules, *records, *modes, *classes;  // as given
  PyObject* known = nullptr;  // the schedules that the entries were made under
  long generation = -1, mode = -1;
  std::unordered_map<uint64_t, std::shared_ptr<Entry>> entries;

  ~Table() {
    for (PyObject* x : {names, schedules, records, modes, classes, known}) Py_XDECREF(x);
  }

  // Whether the entries still hold: no schedule, record or mode of determinism has changed. They are dropped where not.
  bool fresh() {
    static PyObject* const name = PyUnicode_InternFromString("generation");
    Held now(PyObject_GetAttr(records, name));
    if (!now.object) return false;
    long seen = PyLong_AsLong(now.object), asked = 0;
    for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(modes); ++n) {
      Held on(PyObject_CallNoArgs(PyTuple_GET_ITEM(modes, n)));
      if (!on.object) return false;
      asked |= static_cast<long>(on.object == Py_True) << n;
    }
    if (seen == generation && asked == mode && known && PyObject_RichCompareBool(schedules, known, Py_EQ) == 1)
      return true;
    PyObject* copy = PyDict_Copy(schedules);
    if (!copy) return false;
    Py_XSETREF(known, copy);
    generation = seen, mode = asked;
    auto dropped = std::move(entries);
    entries.clear();
    return true;
  }

  std::shared_ptr<Entry> find(const at::TensorBase* const* tensors, size_t count, PyObject* tag) {
    if (!fresh()) return nullptr;
    auto found = entries.find(hash_of(tensors, count, tag));
    return found != entries.end() && found->second->fits(tensors, count, tag) ? found->second : nullptr;
  }

  void keep(const std::vector<const at::TensorBase*>& tensors, PyObject* tag, PyObject* payload) {
    if (!fresh()) return;
    if (entries.size() >= MOST_CALLS) {
      auto dropped = std::move(entries);
      entries.clear();
    }
    auto made = std::make_shared<Entry>(tensors, tag, payload);
    std::swap(entries[hash_of(tensors.data(), tensors.size(), tag)], made);
  }

  bool is_plain(PyObject* x) const {
    for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(classes); ++n)
      if (reinterpret_cast<PyObject*>(Py_TYPE(x)) == PyTuple_GET_ITEM(classes, n)) return true;
    return false;
  }

  // The tensors of a call by name; false where it must go another way: one is missing, wrapped, or wants a gradient.
  bool tensors(PyObject* inputs, const at::TensorBase** found) const {
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    if (PyDict_GET_SIZE(inputs) != count || !untraced()) return false;
    bool recording = c10::GradMode::is_enabled();
    for (Py_ssize_t n = 0; n < count; ++n) {
      PyObject* x = PyDict_GetItemWithError(inputs, PyTuple_GET_ITEM(names, n));
      if (!x || !is_plain(x)) return false;
      found[n] = &tensor_of(x);
      if (!plain(*found[n]) || (recording && found[n]->requires_grad())) return false;
    }
    return true;
  }
};

// The native call of an entry, borrowed; null where it has none (yet).
inline CallObject* native_of(Entry& entry) {
  static PyObject* const name = PyUnicode_InternFromString("native");
  if (!entry.native) {
    PyObject* found = PyObject_GetAttr(entry.payload, name);
    if (!found) {
      PyErr_Clear();
      return nullptr;
    }
    if (Py_TYPE(found) != call_type) {
      Py_DECREF(found);
      return nullptr;
    }
    entry.native = found;
  }
  return reinterpret_cast<CallObject*>(entry.native);
}

}  // namespace sparsec
