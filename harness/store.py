"""Content-addressed objects: what a job made, found again by the hash of all that decided it.

    <root>/objects/ab/abcd.../meta.json + files     a committed object: whole or not there
    <root>/tmp/<random>/                            being written
    <root>/partial/<key>/                           what a killed job can go on from (checkpoints, teacher stores)
    <root>/facts/                                   digests and task descriptions that are dear to compute
    <root>/locks/<key>                              held while a key is worked on; released by the kernel on death
    <root>/runs/<id>                                run folders that use this store: the roots of `gc`

An object is written to `tmp`, files and folders are fsynced, and it is renamed into place; the rename is the commit.
Two writers of one key are harmless: the first rename wins. Locks spare work where the file system has them: a key's
keeps two runs from doing one job at once, and in one scratch folder; the store's keeps `gc` away from running runs.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import StoreError, UsageError
from harness.events import event

SCHEMA = 1


def canonical(value: Any) -> str:
    """JSON with one spelling for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest_of(value: Any) -> str:
    """The sha256 of a JSON value, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Entry:
    """A committed object. `digest` identifies what it holds, whatever made it."""

    key: str
    path: Path
    kind: str
    digest: str
    result: Mapping[str, Any]
    cost: Mapping[str, float]


class Store:
    """The objects under one root folder; made when it does not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        for folder in ("objects", "tmp", "partial", "facts", "runs", "locks"):
            with disk_errors(self.root / folder):
                (self.root / folder).mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the object of a key lies, or would lie."""
        return self.root / "objects" / key[:2] / key

    def scratch(self, key: str) -> Path:
        """A folder that outlives a killed job of this key; removed when the key is committed."""
        return self.root / "partial" / key

    def get(self, key: str) -> Entry | None:
        """The committed object, or None. A damaged one is put aside, so that it is made again."""
        folder = self.path(key)
        try:
            meta = json.loads((folder / "meta.json").read_text())
            sizes = {name: (folder / name).stat().st_size for name in meta["files"]}
            if sizes == {name: file["size"] for name, file in meta["files"].items()}:
                return Entry(key, folder, meta["kind"], meta["digest"], meta["result"], meta["cost"])
        except FileNotFoundError as error:
            if error.filename == str(folder / "meta.json") and not folder.exists():
                return None
        except (json.JSONDecodeError, KeyError, NotADirectoryError):
            pass
        self._put_aside(folder)
        return None

    @contextlib.contextmanager
    def working(self, key: str) -> Iterator[None]:
        """Hold a key while making its object; waits for whoever holds it. Afterwards, `get` it before making it."""
        with open(self.root / "locks" / key, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def in_use(self, *, alone: bool = False) -> Iterator[None]:
        """Keep the store as it is for a run or, `alone`, keep runs out. Raises UsageError when a run is at work."""
        with open(self.root / "locks" / "store", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
            except BlockingIOError:
                raise UsageError(f"a run is using the store {self.root}; wait for it to end") from None
            yield

    def begin(self) -> Path:
        """A new empty folder to write an object into."""
        folder = self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"
        with disk_errors(folder):
            folder.mkdir()
        event("store.tmp-made")
        return folder

    def commit(
        self,
        folder: Path,
        key: str,
        *,
        kind: str,
        spec: Mapping[str, Any],
        inputs: Mapping[str, str],
        result: Mapping[str, Any],
        cost: Mapping[str, float],
        digest: str | None = None,
    ) -> Entry:
        """Make the folder from `begin` the object of `key`.

        `digest` identifies the content; left out, it is the hash of the result and of the files. When another writer
        was first, its object stands and this one is thrown away.
        """
        with disk_errors(folder):
            files = {str(path.relative_to(folder)): _fsync(path) for path in _files(folder)}
            event("store.files-written")
            digest = digest or digest_of([result, {name: file["sha256"] for name, file in files.items()}])
            meta = {
                "schema": SCHEMA,
                "key": key,
                "kind": kind,
                "spec": spec,
                "inputs": inputs,
                "digest": digest,
                "result": result,
                "cost": cost,
                "files": files,
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            write_whole(folder / "meta.json", json.dumps(meta, indent=1, sort_keys=True, allow_nan=False))
            for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
                _fsync_folder(inner)
            event("store.meta-written")
            self._rename(folder, self.path(key))
            event("store.committed")
            shutil.rmtree(self.scratch(key), ignore_errors=True)
        entry = self.get(key)
        if entry is None:
            raise StoreError(f"the object {self.path(key)} was committed and cannot be read back; is the disk failing?")
        return entry

    def keep(self, run_dir: Path) -> None:
        """Make a run folder a root: `gc` keeps what its plan names as long as the folder exists."""
        name = hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:16]
        write_whole(self.root / "runs" / name, str(run_dir.absolute()))

    def roots(self) -> list[Path]:
        """The run folders that use this store and still exist."""
        named = [Path(path.read_text()) for path in sorted((self.root / "runs").iterdir())]
        return [path for path in named if path.is_dir()]

    def collect(self, live: Iterable[str], *, dry_run: bool = False) -> list[tuple[str, int]]:
        """Remove every object, scratch folder and lock whose key is not live, and what dead writers left behind.

        Nobody else may be at work (`in_use(alone=True)`). Returns (key, bytes) of what is, or would be, removed.
        """
        wanted = frozenset(live)
        gone = [path for path in sorted((self.root / "objects").glob("*/*")) if path.name not in wanted]
        gone += [path for path in sorted((self.root / "partial").iterdir()) if path.name not in wanted]
        gone += sorted((self.root / "tmp").iterdir())
        found = [(path.name, _size(path)) for path in gone]
        if not dry_run:
            for path in gone:
                shutil.rmtree(path, ignore_errors=True)
            for lock in (self.root / "locks").iterdir():
                if lock.name not in (*wanted, "store"):
                    lock.unlink()
        return found

    def _rename(self, folder: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        _fsync_folder(target.parent.parent)
        try:
            os.rename(folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(folder)
        event("store.renamed")
        _fsync_folder(target.parent)

    def _put_aside(self, folder: Path) -> None:
        with contextlib.suppress(FileNotFoundError), disk_errors(folder):
            os.rename(folder, self.root / "tmp" / f"damaged-{folder.name}-{uuid.uuid4().hex[:8]}")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a place to write to into a message that says what to do."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StoreError(full(path)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(
                f"{path} cannot be written: {error.strerror}. Choose another with --out or --store"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST) and not path.is_dir():
            raise UsageError(f"{path} cannot be made: a file is in the way ({error.filename})") from error
        raise


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, however libraries have wrapped it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "os error 28" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def full(path: Path) -> str:
    """What to say when a disk is full."""
    return (
        f"the disk is full: {path}. Nothing that was finished is lost: free some space "
        "(`fuse-bench gc` removes what no run needs) and give the same command again"
    )


def folder_stamp(folder: Path) -> str:
    """A hash of the names, sizes and times of a folder's files: equal as long as nobody has touched them."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return digest_of([str(folder), [(p.name, (s := p.stat()).st_size, s.st_mtime_ns, s.st_ino) for p in files]])[:32]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fsync(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path)) if path.is_dir() else path.stat().st_size
