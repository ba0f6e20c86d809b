// The extension module dsa_ext._C: schemas of the ops on LibTorch's stable ABI, and build_info() on Python's limited
// API, so that one file serves every CPython and torch from the floor on. Each op.cpp registers what it implements.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "build_config.h"

STABLE_TORCH_LIBRARY(dsa_ext, m) {
  m.def(
      "sparse_mla_fwd(Tensor q, Tensor kv, Tensor idx, float scale, int d_v=512, Tensor? attn_sink=None, "
      "Tensor? topk_length=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "sparse_mla_fwd_out(Tensor q, Tensor kv, Tensor idx, float scale, int d_v, Tensor? attn_sink, "
      "Tensor? topk_length, Tensor(a!) out, Tensor(b!) max_logits, Tensor(c!) lse) -> ()");
  // The name of the implementation that a call would take on a device; an error that lists the reasons if none would.
  m.def("sparse_mla_fwd_path(int compute_major, int h_q, int d_qk, int topk) -> str");

  m.def(
      "sparse_mla_decode(Tensor q, Tensor kv_cache, Tensor idx, float scale, Tensor? topk_length=None, "
      "Tensor? attn_sink=None, Tensor? extra_kv_cache=None, Tensor? extra_idx=None, Tensor? extra_topk_length=None, "
      "Tensor? plan=None) -> (Tensor, Tensor)");
  m.def(
      "sparse_mla_decode_out(Tensor q, Tensor kv_cache, Tensor idx, float scale, Tensor? topk_length, "
      "Tensor? attn_sink, Tensor? extra_kv_cache, Tensor? extra_idx, Tensor? extra_topk_length, Tensor? plan, "
      "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("sparse_mla_decode_path(int compute_major, int h_q, str format) -> str");
  m.def(
      "plan_sparse_mla_decode_out(Tensor? topk_length, int batch, int s_q, int h_q, int topk, int extra_topk, "
      "Tensor? extra_topk_length, bool batch_invariant, Tensor(a!) out) -> ()");
  // Elements of the plan of such a call on a device with so many multiprocessors.
  m.def(
      "plan_sparse_mla_decode_size(int sms, int batch, int s_q, int h_q, int topk, int extra_topk, "
      "bool batch_invariant) -> int");

  m.def(
      "topk_indices(Tensor logits, int k, Tensor? lengths=None, Tensor? row_starts=None, Tensor? block_table=None, "
      "int? page_size=None, Tensor? offsets=None) -> Tensor");
  m.def(
      "topk_indices_out(Tensor logits, int k, Tensor? lengths, Tensor? row_starts, Tensor? block_table, "
      "int? page_size, Tensor? offsets, Tensor(a!) out) -> ()");

  m.def("pack_kv_cache(Tensor kv, str format, int? page_size, str scale_format) -> Tensor");
  m.def("unpack_kv_cache(Tensor packed, str format) -> Tensor");
  m.def("store_kv_cache(Tensor kv, Tensor(a!) kv_cache, Tensor slots, str format, str scale_format) -> ()");

  m.def("quantize_indexer(Tensor x, str scale_format) -> (Tensor, Tensor)");
  m.def(
      "prepare_indexer(Tensor q, Tensor k, Tensor weights, Tensor cos, Tensor sin, str rope, bool hadamard, "
      "str scale_format) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("store_indexer_cache(Tensor k, Tensor k_scale, Tensor(a!) k_cache, Tensor slots) -> ()");

  m.def(
      "indexer_logits(Tensor q, Tensor k, Tensor? k_scale, Tensor weights, Tensor k_start, Tensor k_end, "
      "str out_dtype) -> Tensor");
  m.def(
      "indexer_logits_out(Tensor q, Tensor k, Tensor? k_scale, Tensor weights, Tensor k_start, Tensor k_end, "
      "Tensor(a!) out) -> ()");
  m.def(
      "paged_indexer_logits(Tensor q, Tensor k_cache, Tensor weights, Tensor context_lens, Tensor block_table, "
      "int max_context_len, Tensor? plan) -> Tensor");
  m.def(
      "paged_indexer_logits_out(Tensor q, Tensor k_cache, Tensor weights, Tensor context_lens, Tensor block_table, "
      "int max_context_len, Tensor? plan, Tensor(a!) out) -> ()");
  m.def("plan_paged_indexer_logits_out(Tensor context_lens, int page_size, int next_n, Tensor(a!) out) -> ()");
  // Elements of a plan on a device with so many multiprocessors.
  m.def("plan_paged_indexer_logits_size(int sms) -> int");
  // page_size 0: of indexer_logits
  m.def("indexer_logits_path(int compute_major, int heads, int dim, int page_size) -> str");
}

namespace {

namespace config = dsa::build_config;

PyObject* string_or_none(char const* text) {
  if (text != nullptr) return PyUnicode_FromString(text);
  return Py_NewRef(Py_None);
}

// Takes over the reference to value.
bool set(PyObject* dict, char const* key, PyObject* value) {
  bool const ok = value != nullptr && PyDict_SetItemString(dict, key, value) == 0;
  Py_XDECREF(value);
  return ok;
}

PyObject* archs() {
  PyObject* const list = PyList_New(0);
  for (auto name = config::kArchs; list != nullptr && *name != nullptr; ++name) {
    PyObject* const text = PyUnicode_FromString(*name);
    if (text == nullptr || PyList_Append(list, text) != 0) {
      Py_XDECREF(text);
      Py_DECREF(list);
      return nullptr;
    }
    Py_DECREF(text);
  }
  return list;
}

PyObject* source_hashes() {
  PyObject* const dict = PyDict_New();
  for (auto const& [op, hash] : config::kSourceHashes)
    if (dict != nullptr && !set(dict, op, PyUnicode_FromString(hash))) {
      Py_DECREF(dict);
      return nullptr;
    }
  return dict;
}

PyObject* build_info(PyObject*, PyObject*) {
  PyObject* const info = PyDict_New();
  if (info == nullptr) return nullptr;
  if (set(info, "version", string_or_none(config::kVersion)) && set(info, "archs", archs()) &&
      set(info, "cuda", string_or_none(config::kCuda)) && set(info, "cutlass", string_or_none(config::kCutlass)) &&
      set(info, "source_hash", source_hashes()))
    return info;
  Py_DECREF(info);
  return nullptr;
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "How this file was built: version, archs (empty: for the CPU only), cuda, cutlass, source_hash of each op."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
