"""Runs programs on a GPU, through the driver alone."""

import ctypes
import functools
import time

import numpy as np

from .program import Program, TensorMap

SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
DATA_TYPES = {1: 0, 2: 9}  # CU_TENSOR_MAP_DATA_TYPE_UINT8, _BFLOAT16
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def encode(encoder: object, t: TensorMap, address: int) -> ctypes.Array:
    """The 128 opaque bytes. encoder: cuTensorMapEncodeTiled, or the emulator's."""
    memory = (ctypes.c_uint8 * (128 + 64))()
    start = -ctypes.addressof(memory) % 64  # the driver wants it aligned
    rank = len(t.sizes)
    ones = (ctypes.c_uint32 * rank)(*[1] * rank)
    status = encoder(
        ctypes.byref(memory, start),
        ctypes.c_int(DATA_TYPES[t.element_bytes]),
        ctypes.c_uint32(rank),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * rank)(*t.sizes),
        (ctypes.c_uint64 * rank)(*t.strides),
        (ctypes.c_uint32 * rank)(*t.box),
        ones,
        ctypes.c_int(0),  # no interleaving
        ctypes.c_int(SWIZZLES[t.swizzle]),
        ctypes.c_int(0),  # no promotion
        ctypes.c_int(0),  # zeros out of bounds
    )
    if status != 0:
        raise RuntimeError(f"the tensor map of {t} is refused: {status}")
    return (ctypes.c_uint8 * 128).from_buffer_copy(memory, start)


class Gpu:
    def __init__(self) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(100)
        self._call("cuDeviceGetName", name, 100, 0)
        self.name = name.value.decode()

    def run(self, program: Program) -> dict[str, np.ndarray]:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        log = ctypes.create_string_buffer(4096)
        # CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES
        options = (ctypes.c_int * 2)(5, 6)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
        text = program.ptx.encode()
        status = self.driver.cuModuleLoadDataEx(ctypes.byref(module), text, 2, options, values)
        if status != 0:
            raise RuntimeError(f"{program.name}: {log.value.decode()} ({status})")
        self._call("cuModuleGetFunction", ctypes.byref(function), module, b"test")
        if program.shared:
            self._call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, program.shared)
        addresses = {name: self._upload(array) for name, array in program.arrays.items()}
        arguments = [encode(self.driver.cuTensorMapEncodeTiled, m, addresses[m.array].value) for m in program.maps]
        arguments += addresses.values()
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        size = (program.grid, 1, 1, program.threads, 1, 1, program.shared)
        self._call("cuLaunchKernel", function, *size, None, pointers, None)
        self._wait(program.name)
        results = {name: program.arrays[name].copy() for name in program.outputs}
        for name, array in results.items():
            self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), addresses[name], array.nbytes)
        for address in addresses.values():
            self._call("cuMemFree_v2", address)
        self._call("cuModuleUnload", module)
        return results

    def _upload(self, array: np.ndarray) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), max(array.nbytes, 16))
        self._call("cuMemcpyHtoD_v2", address, ctypes.c_void_p(array.ctypes.data), array.nbytes)
        return address

    def _wait(self, name: str, seconds: float = 10) -> None:
        """A program that waits for itself would keep the GPU for ever."""
        deadline = time.monotonic() + seconds
        while (status := self.driver.cuStreamQuery(None)) == 600:  # CUDA_ERROR_NOT_READY
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} does not end")
            time.sleep(0.001)
        if status != 0:
            raise RuntimeError(f"{name} failed: {status}")

    def _call(self, function: str, *arguments: object) -> None:
        converted = [
            ctypes.c_size_t(a) if function.startswith("cuMem") and isinstance(a, int) else a for a in arguments
        ]
        if status := getattr(self.driver, function)(*converted):
            raise RuntimeError(f"{function} failed: {status}")


@functools.cache
def _gpu() -> Gpu:
    return Gpu()


def run(program: Program) -> dict[str, np.ndarray]:
    return _gpu().run(program)


def device() -> dict[str, np.ndarray]:
    return {"name": np.array(_gpu().name)}
