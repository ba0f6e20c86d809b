"""Runs the project's kernels without a GPU: docs/emulator.md."""
