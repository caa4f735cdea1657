"""The same isolation by bubblewrap (`bwrap`, 0.8 or later), a small tool that is looked over by many.

As root, bwrap runs in a user namespace of two ids (namespaces.map_user), as the id 0 of it: only so can it see the
interpreter's folder wherever that lies, and the program still be a user whom the limit on processes binds.
"""

import os
import shutil
from pathlib import Path

from harness.sandbox import namespaces
from harness.sandbox.namespaces import Room


def command(room: Room) -> tuple[str, ...]:
    """What goes before a program's own command."""
    root = os.name == "posix" and os.getuid() == 0
    # Root's namespace is made beforehand. The rights to change its id are lost with the change.
    rights = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID") if root else ()
    user = () if root else ("--unshare-user", "--disable-userns")
    binds = [word for folder in _above(room) for word in ("--dir", folder)]
    for path in namespaces.visible(room):
        if path.is_symlink():
            binds += ["--symlink", os.readlink(path), str(path)]
        else:
            binds += ["--ro-bind", str(path), str(path)]
    for device in namespaces.DEVICES:
        binds += ["--dev-bind", device, device]
    if room.proc:
        binds += ["--proc", "/proc"]
        binds += [word for name, to in namespaces.STREAMS.items() for word in ("--symlink", to, f"/dev/{name}")]
    size = str(room.scratch_mb << 20)
    return (
        *(shutil.which("bwrap") or "bwrap", *user, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", "--hostname", "sandbox", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", *rights, *binds, "--perms", "1777", "--size", size, "--tmpfs", "/tmp"),
        *("--remount-ro", "/", "--chdir", "/tmp", "--"),
    )


def _above(room: Room) -> list[str]:
    """The folders above what is bound, the topmost first: bwrap itself would close them to all but its own user."""
    paths = [*namespaces.visible(room), *map(Path, namespaces.DEVICES)]
    return sorted({str(folder) for path in paths for folder in path.parents} - {"/"})


def prepare(user: int | None) -> None:
    """Before bwrap starts, as root: the user namespace, in which no further one can be made. Raises OSError."""
    if user is not None:
        namespaces.map_user(user)
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
