"""Files that are written at once or not at all, and the lock on a run's folder."""
import csv
import io
import os
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from config import UserError


@contextmanager
def writing(path: Path):
    """Around the writing of `path`: a full or read-only disk's error becomes a UserError that names it."""
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}; what was saved before is kept; "
                        "free space or mend its permissions, then go on") from None


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Put `content` in the place of the file `path`, or leave that as it was and raise UserError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            with open(part, "wb") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def table(rows: Iterable) -> bytes:
    """Rows of values as CSV."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def write_table(path: str, header: list[str], rows: Iterable) -> None:
    """Write a table as CSV, at once or not at all, and say so; nothing if there is no `path`."""
    if path:
        with writing(Path(path)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(path), table([header, *rows]))
        print(f"wrote {path}")


class Locked(UserError):
    """Another process trains in the folder."""


class Lock:
    """`with Lock(folder)`: no other process trains in `folder`, which is made if it is not there.

    The file `lock` in it is locked and holds our process id; the system unlocks it however we end. At the end
    it is removed, and the folders that were made for it if nothing else lies there. Raises Locked if another
    process has the lock, UserError if the disk refuses.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "lock"

    def __enter__(self):
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; expected a folder, choose another --out_dir")
        self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        with writing(self.path):
            while True:  # until it is not a file that its owner has just removed
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = open(self.path, "a+b", buffering=0)
                self.lock()
                if self.is_there():
                    break
                self.file.close()
            self.file.truncate(0)
            self.file.write(str(os.getpid()).encode())
        return self

    def lock(self) -> None:
        """Lock the open file, or raise Locked."""
        try:
            if fcntl is None:
                raise OSError("no fcntl")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with self.file:
                self.file.seek(0)
                owner = self.file.read().decode() or "?"
            raise Locked(f"process {owner} is training in {self.folder}; wait until it ends, or choose "
                         "another --out_dir") from None
        except OSError as e:
            print(f"warning: no file locks here ({e}): nothing prevents a second run in {self.folder}")

    def is_there(self) -> bool:
        """Whether the open file is still the one in the folder."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        return False

    def __exit__(self, *_):
        with self.file, suppress(OSError):  # removed while it is held; a folder that holds more stays
            if self.is_there():
                self.path.unlink()
            for folder in self.made:
                folder.rmdir()
