"""A process that runs what may fail: on a GPU, an error ends the context, and all that follows in the process fails."""

import importlib
import multiprocessing
from multiprocessing.connection import Connection

import numpy as np

SECONDS = 120  # of one task; the first one waits for imports and for the driver

Arrays = dict[str, np.ndarray]


class Worker:
    """Calls this package's functions by name, one at a time, in a process that is replaced when one fails."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def call(self, module: str, function: str, *arguments: object) -> Arrays:
        """Raises RuntimeError when the function fails, does not end, or takes the process with it."""
        try:
            self.connection.send((module, function, arguments))
            if not self.connection.poll(SECONDS):
                raise RuntimeError(f"no result in {SECONDS} s")
            result = self.connection.recv()
        except (RuntimeError, EOFError, OSError) as error:
            self._replace()
            raise RuntimeError(str(error) or "the process has ended") from error
        if isinstance(result, str):
            self._replace()
            raise RuntimeError(result)
        return result

    def _replace(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()
        self._start()


def _serve(connection: Connection) -> None:
    while True:
        try:
            module, function, arguments = connection.recv()
        except EOFError:
            return
        try:
            result = getattr(importlib.import_module(f"{__package__}.{module}"), function)(*arguments)
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        connection.send(result)
