"""One extension module, dsa_ext._C: the .cpp files through torch's BuildExtension, the .cu units through a ninja run of
our own (build_tools/kernels.py). pyproject.toml holds everything that is not code."""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from build_tools import archs, build_config, find_cutlass, find_toolkit, flags, kernels  # noqa: E402


def import_torch():
    try:
        import torch
    except ImportError:
        sys.exit("dsa_ext: building without isolation needs torch in this environment: install torch first.")
    if tuple(map(int, torch.__version__.split(".")[:2])) < flags.TORCH_FLOOR:
        floor = ".".join(map(str, flags.TORCH_FLOOR))
        sys.exit(f"dsa_ext: torch {torch.__version__} is too old to build with: install torch >= {floor}.")


def main():
    import_torch()
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    if importlib.util.find_spec("ninja"):
        # The same ninja for isolated and plain builds: two versions discard each other's logs.
        import ninja

        os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ["PATH"]

    selected = archs.selected()
    toolkit = cutlass = None

    class BuildExt(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # Editable builds get a throw-away directory, which would rebuild everything each time.
            self.build_temp = str(ROOT / "build/host")

        def build_extension(self, ext):
            nonlocal toolkit, cutlass
            Path(self.build_temp).mkdir(parents=True, exist_ok=True)
            if selected:
                toolkit = find_toolkit.find() or sys.exit(f"dsa_ext: no CUDA toolkit was found. {find_toolkit.REMEDY}")
                cutlass = find_cutlass.find()
                ext.extra_objects = kernels.compile_all(selected, toolkit, cutlass)
                ext.include_dirs.append(str(toolkit.include))
                ext.library_dirs.append(str(toolkit.library_dir))
                ext.libraries += ["cudart_static", "rt", "dl", "pthread"]
            version = self.distribution.get_version()
            ext.include_dirs.append(str(build_config.write(version, selected, toolkit, cutlass)))
            super().build_extension(ext)

    # Without CUDA the schemas alone are built; the Python layer gives them their CPU form.
    sources = ["csrc/bindings.cpp"]
    if selected:
        sources += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob("*/op.cpp"))
    extension = CppExtension(
        "dsa_ext._C",
        sources,
        py_limited_api=True,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[
            ("TORCH_TARGET_VERSION", flags.TORCH_TARGET_VERSION),
            *((f"DSA_{archs.FOLDERS[arch].upper()}", None) for arch in selected),
        ],
        extra_compile_args={"cxx": flags.HOST},
        extra_link_args=flags.LINK,
    )
    setup(
        cmdclass={"build_ext": BuildExt},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
        ext_modules=[extension],
    )


main()
