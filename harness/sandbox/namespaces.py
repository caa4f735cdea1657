"""Linux namespaces for a program's process, made by system calls between fork and exec: no other tool is needed.

The root that a program sees is a read-only tmpfs with the folders of `visible()`, three devices and one writable
scratch folder, /tmp, of a limited size. It has a /proc, of its own processes, only where the language needs one.
Ordinary users make a user namespace with their own id alone. Root's has two ids: its own, to make the mounts with, and
the one that the program runs as.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.sandbox import limits

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
DETACH = 2
MOUNT_SETATTR = 442
"""mount_setattr(2), Linux 5.12: one number on every architecture. RDONLY, NOSUID and NODEV are bits 0 to 2 of it."""
RECURSIVE, READ_ONLY = 0x8000, 0b111

SCRATCH_FILES = 1024
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

INTERPRETER = os.path.realpath(sys.executable)
"""The base interpreter's file: a virtual environment adds nothing to `python -I -S`, and lies among other files."""

libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


STREAMS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
"""The links in /dev that a root with /proc has."""


@dataclass(frozen=True)
class Room:
    """What a language needs of the file system: folders besides the system's, MiB to write in, and whether /proc."""

    visible: tuple[str, ...] = ()
    scratch_mb: int = 16
    proc: bool = False


def visible(room: Room = Room()) -> list[Path]:
    """What a program may read: the system's folders, the loader's cache, the interpreter's folder if elsewhere."""
    system = [Path(f"/{name}") for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")]
    own = [Path(place) for place in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix, *room.visible))]
    own = [path for path in own if not path.resolve().is_relative_to("/usr")]
    return [path for path in (*system, Path("/etc/ld.so.cache"), *own) if path.exists()]


def enter(folder: str, user: int | None, room: Room, confine: Callable[[], None]) -> None:
    """Return in a process that has namespaces of its own and is the first of its pid namespace.

    The calling process stays behind, waits for that one and ends with its status. `folder`, empty, is where the root
    is built: nothing of it is seen outside. `user`: as root, the id to run as. `confine` is called without rights.
    Raises OSError with the step that failed.
    """
    map_user(user)
    _call("unshare", NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP)
    first = os.fork()
    if first:
        # Whoever waits for the end of the program's pipes, or of subprocess's own, must not wait for this one.
        os.closerange(0, 256)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    # The one that stays behind is not to be in the program's group, which the program may signal.
    os.setsid()
    _call("sethostname", b"sandbox", 7)
    _build(folder, room)
    _move(folder)
    become(user)
    confine()


def map_user(user: int | None) -> None:
    """A user namespace for this process, with its own user and, as root, `user`. Raises OSError."""
    # The files in /proc of a process that cannot be dumped belong to root.
    limits.prctl(limits.PR_SET_DUMPABLE, 1)
    own, group = os.getuid(), os.getgid()
    if user is None:
        _call("unshare", NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{own} {own} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        return
    # More than the own id can be mapped only from outside.
    ready, go = os.pipe()
    this, helper = os.getpid(), os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(go)
            if os.read(ready, 1):
                for name, identity in (("uid_map", own), ("gid_map", group)):
                    Path(f"/proc/{this}/{name}").write_text(f"{identity} {identity} 1\n{user} {user} 1\n")
                status = 0
        finally:
            os._exit(status)
    os.close(ready)
    _call("unshare", NEWUSER)
    os.write(go, b".")
    os.close(go)
    if os.waitpid(helper, 0)[1]:
        raise OSError(1, f"the user {user} cannot be mapped into a user namespace")


def become(user: int | None) -> None:
    """As root, turn into `user`, which ends all capabilities; an ordinary user's end with the next exec."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _build(folder: str, room: Room) -> None:
    # No mount made from here on is to reach the machine's own.
    _mount(None, "/", None, REC | PRIVATE)
    _mount("tmpfs", folder, "tmpfs", NOSUID | NODEV, "size=256k,mode=755")
    root = Path(folder, "root")
    for path in visible(room):
        place = root / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            place.symlink_to(os.readlink(path))
        elif path.is_dir():
            place.mkdir(exist_ok=True)
            _mount(str(path), str(place), None, BIND | REC)
        else:
            place.touch()
            _mount(str(path), str(place), None, BIND)
    for name in ("dev", "tmp", *(["proc"] if room.proc else [])):
        (root / name).mkdir(exist_ok=True)
    for device in DEVICES:
        (root / device[1:]).touch()
    for name, target in STREAMS.items() if room.proc else ():
        (root / "dev" / name).symlink_to(target)
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    _call("syscall", MOUNT_SETATTR, -100, folder.encode(), RECURSIVE, ctypes.byref(attributes), ctypes.c_size_t(32))
    for device in DEVICES:
        _mount(device, str(root / device[1:]), None, BIND)
    if room.proc:
        _mount("proc", str(root / "proc"), "proc", NOSUID | NODEV | NOEXEC)
    size = f"size={room.scratch_mb}m,nr_inodes={SCRATCH_FILES},mode=1777"
    _mount("tmpfs", str(root / "tmp"), "tmpfs", NOSUID | NODEV, size)


def _move(folder: str) -> None:
    os.chdir(folder)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", DETACH)
    # The kernel gives no user namespace, and so no mounts, to a process whose root is not that of its mounts.
    os.chroot("root")
    os.chdir("/tmp")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def _call(name: str, *arguments: object) -> None:
    if libc is None:
        raise OSError(38, f"{name} needs Linux")
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        said = " ".join(a.decode() for a in arguments if isinstance(a, bytes))
        raise OSError(number, f"{name} {said}".strip() + f": {os.strerror(number)}")
