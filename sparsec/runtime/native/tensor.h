// What is read of a tensor behind its Python object, and how tensors are made.
//
// Only what torch exports is called; torch's own header of its Python object costs ten seconds to compile, so the
// object is described here, in the form that build.py found in that header.
#pragma once
#include <Python.h>

#include <ATen/EmptyTensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdint>
#include <optional>
#include <vector>

PyObject* THPVariable_Wrap(const at::TensorBase& tensor);
extern PyObject* THPVariableClass;

#ifdef SPARSEC_CUDA
namespace at::detail {
TensorBase empty_cuda(IntArrayRef, ScalarType, std::optional<Device>, std::optional<c10::MemoryFormat>);
}
namespace c10::cuda {
DeviceIndex current_device();
}
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace sparsec {

struct TensorObject {
  PyObject_HEAD
#ifdef SPARSEC_MAYBE_OWNED
  bool borrowed;
#endif
  at::TensorBase tensor;
};

// A tensor's Python object as the tensor; the object has been checked to be one.
inline const at::TensorBase& tensor_of(PyObject* object) {
  return reinterpret_cast<TensorObject*>(object)->tensor;
}

inline bool is_tensor(PyObject* object) {
  auto* base = reinterpret_cast<PyTypeObject*>(THPVariableClass);
  return Py_TYPE(object) == base || PyType_IsSubtype(Py_TYPE(object), base);
}

// Shape, strides, dtype and device of a tensor.
struct Layout {
  std::vector<int64_t> sizes, strides;
  at::ScalarType dtype;
  at::Device device;

  explicit Layout(const at::TensorBase& x)
      : sizes(x.sizes().vec()), strides(x.strides().vec()), dtype(x.scalar_type()), device(x.device()) {}

  bool fits(const at::TensorBase& x) const {
    return x.scalar_type() == dtype && x.device() == device && x.sizes() == at::IntArrayRef(sizes) &&
        x.strides() == at::IntArrayRef(strides);
  }

  // A contiguous tensor of this shape and dtype.
  at::TensorBase empty() const {
#ifdef SPARSEC_CUDA
    if (device.is_cuda()) return at::detail::empty_cuda(sizes, dtype, device, std::nullopt);
#endif
    return at::detail::empty_cpu(sizes, dtype, false, std::nullopt);
  }
};

inline void mix(uint64_t& hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
  hash ^= hash >> 29;
}

inline void mix(uint64_t& hash, const at::TensorBase& x) {
  for (int64_t size : x.sizes()) mix(hash, static_cast<uint64_t>(size));
  for (int64_t stride : x.strides()) mix(hash, static_cast<uint64_t>(stride));
  mix(hash, static_cast<uint64_t>(x.scalar_type()) << 16 ^ static_cast<uint64_t>(x.device().index() + 1));
}

// Whether nothing but data is behind a tensor: no transform, no mode, no wrapper.
inline bool plain(const at::TensorBase& x) {
  using c10::DispatchKey;
  static const c10::DispatchKeySet known =
      c10::DispatchKeySet({DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::ADInplaceOrView}) |
      c10::autograd_dispatch_keyset | c10::DispatchKeySet({DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA});
  return known.has_all(x.key_set());
}

// Whether this thread records nothing and transforms nothing: no mode, no functorch level, no autocast.
inline bool untraced() {
  static const c10::DispatchKeySet inference =
      c10::default_included_set - c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView);
  auto local = c10::impl::tls_local_dispatch_key_set();
  bool usual = local.included_ == c10::default_included_set || local.included_ == inference;
  return usual && local.excluded_.has_all(c10::default_excluded_set);
}

}  // namespace sparsec
