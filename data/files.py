"""Files that are written at once or not at all, and the lock on a run's folder."""
import csv
import io
import os
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


def replace_file(path: Path, write) -> None:
    """Call `write(file)` on a new file and put it in the place of `path`, or leave `path` as it was.

    Raises UserError if the disk refuses.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            with open(part, "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_table(path: Path, header: list[str], rows) -> None:
    """Write a table as CSV, at once or not at all, and say so."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    replace_file(path, lambda f: f.write(out.getvalue().encode()))
    print(f"wrote {path}")


class Lock:
    """`with Lock(folder) as lock`: no other process trains in `folder`, which is made if it is not there.

    The file `lock` in it is locked and holds our process id; the system unlocks it however we end. Set
    `begun` when the run begins: without it, what the Lock made is removed again. Raises UserError if another
    process has the lock, or the disk refuses.
    """

    def __init__(self, folder: Path):
        self.folder, self.path, self.file, self.begun = folder, folder / "lock", None, False

    def __enter__(self):
        self.made = [p for p in (self.path, self.folder, *self.folder.parents) if not p.exists()]
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; expected a folder, choose another --out_dir")
        for _ in range(100):  # another process may remove what it made, between any two of these lines
            with writing(self.path), suppress(FileNotFoundError):
                if self.file:
                    self.file.close()
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = open(self.path, "a+b", buffering=0)
                self.take()
                if os.stat(self.path).st_ino == os.fstat(self.file.fileno()).st_ino:
                    self.file.truncate(0)
                    self.file.write(str(os.getpid()).encode())
                    return self
        raise UserError(f"cannot lock {self.path}: it does not stay; choose another --out_dir")

    def take(self) -> None:
        """Lock the file. Raises UserError if another process has it."""
        try:
            if fcntl is None:
                raise OSError("no fcntl")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with self.file:
                self.file.seek(0)
                owner = self.file.read().decode() or "?"
            raise UserError(f"process {owner} is training in {self.folder}; wait until it ends, or choose "
                            "another --out_dir") from None
        except OSError as e:
            print(f"warning: no file locks here ({e}): nothing prevents a second run in {self.folder}")

    def __exit__(self, *_):
        with self.file, suppress(OSError):  # removed while it is held; a folder that holds more stays
            if (self.path in self.made and not self.begun) or os.listdir(self.folder) == ["lock"]:
                self.path.unlink()
            for folder in self.made[self.path in self.made:]:
                folder.rmdir()
