"""Every compiler flag that shapes the binary. Part of the source hash that measured rows carry (source_hash.py)."""

KERNEL = [
    "-O3",
    "-std=c++20",
    "-DNDEBUG",  # CuTe's asserts would end the process
    "-lineinfo",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    "-Xptxas=-v",  # what nvcc_checked.py reads
]


def gencode(arch: str) -> str:
    return f"-gencode=arch=compute_{arch},code=sm_{arch}"


# (torch's headers have unused parameters)
HOST = ["-O2", "-std=c++20", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
LINK = ["-Wl,--exclude-libs,ALL", "-Wl,-s"]

# LibTorch's stable ABI of torch 2.11: the one binary serves that version and every later one.
TORCH_FLOOR = (2, 11)
TORCH_TARGET_VERSION = f"0x{TORCH_FLOOR[0]:02X}{TORCH_FLOOR[1]:02X}000000000000"
