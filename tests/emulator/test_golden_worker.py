"""What fails while golden files are written fails alone."""

import numpy as np
import pytest

from .golden.worker import Worker


def test_worker_outlives_failures():
    worker = Worker()
    ones = np.ones(4, np.float32)
    try:
        first = worker.process.pid
        assert (worker.call("matrices", "to_bf16", ones) == 0x3F80).all()
        with pytest.raises(RuntimeError, match="AttributeError.*no_such_function"):
            worker.call("matrices", "no_such_function")
        assert worker.process.pid != first
        assert (worker.call("matrices", "to_bf16", 2 * ones) == 0x4000).all()
        worker.process.kill()
        with pytest.raises(RuntimeError):
            worker.call("matrices", "to_bf16", ones)
        assert (worker.call("matrices", "to_bf16", 4 * ones) == 0x4080).all()
    finally:
        worker.process.kill()
        worker.process.join()
