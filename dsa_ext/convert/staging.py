"""Files that appear under their names whole or not at all.

Each is written under a temporary name in the same folder; when all are complete and on the disk, all are renamed. A
killed run leaves temporary files, never a part of a file under a final name, and the next run removes them. The folder
is locked meanwhile, so that a second run cannot take the first one's files for leftovers.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from .errors import ConvertError

_SUFFIX = ".dsa-convert.partial"


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of earlier runs."""
    return sorted(folder.glob(f".*{_SUFFIX}"))


class Staging:
    """A context: files are created in it, written to, and published by `commit`; without that, they are removed.

    Raises ConvertError, also from its methods, where the disk is full or another run has the folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, int] = {}  # final name -> descriptor
        self._lock = -1

    def __enter__(self) -> "Staging":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ConvertError(f"another dsa-convert is writing to {self.folder}") from error
        except OSError:  # a file system without locks
            pass
        for path in leftovers(self.folder):
            path.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        for name, fd in self._files.items():
            with suppress(OSError):
                os.close(fd)
            with suppress(OSError):
                self._partial(name).unlink(missing_ok=True)
        os.close(self._lock)

    def create(self, name: str, nbytes: int) -> None:
        """A file of this final name and size, zeros so far."""
        if (self.folder / name).is_dir():
            raise ConvertError(f"{self.folder / name} is a folder, expected a file or nothing")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._files[name] = os.open(self._partial(name), flags, 0o666)
        self._guarded(name, os.truncate, nbytes)

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view.nbytes:
            done = self._guarded(name, os.pwrite, view, offset)
            view, offset = view[done:], offset + done

    def commit(self) -> None:
        """Publish every file: all bytes reach the disk before the first name does."""
        for name in self._files:
            self._guarded(name, os.fsync)
        while self._files:
            name = next(iter(self._files))
            os.close(self._files[name])
            os.replace(self._partial(name), self.folder / name)
            del self._files[name]
        with suppress(OSError):  # not every file system syncs folders
            os.fsync(self._lock)

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}{_SUFFIX}"

    def _guarded(self, name: str, call, *arguments):
        try:
            return call(self._files[name], *arguments)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ConvertError(
                    f"the disk is full: {self.folder / name} could not be written ({error.strerror})"
                ) from error
            raise ConvertError(f"{self.folder / name} could not be written ({error.strerror})") from error
