"""Programs that try to reach what lies outside: each gives the right answers if its attempt succeeds.

{victim}, {port}, {abstract}, {home}, {root} and {name} are filled in by the test.
"""

from tests.harness.hostile import MARK

# They succeed with rlimits alone, and are harmless there.
SEEN_BY_RLIMITS = {
    "reads /etc/passwd": "def f(x):\n    open('/etc/passwd').read()\n    return x * x",
    "lists /etc": "import os\ndef f(x):\n    return x * x if len(os.listdir('/etc')) > 5 else 0",
    "lists the victim's folder": "import os\ndef f(x):\n    os.listdir({victim!r})\n    return x * x",
    "reads the victim's file": "def f(x):\n    open({victim!r} + '/secret').read()\n    return x * x",
    "reads it by a symlink": """
import os
def f(x):
    os.path.lexists('link') or os.symlink({victim!r}, 'link')
    open('link/secret').read()
    return x * x
""",
    "reads it by the way up": """
import os
def f(x):
    open('../' * 40 + {victim!r}[1:] + '/secret').read()
    return x * x
""",
    "sees other processes": """
import os
def f(x):
    return x * x if len([name for name in os.listdir('/proc') if name.isdigit()]) > 5 else 0
""",
    "finds its parent": """
import os
def f(x):
    os.kill(os.getppid(), 0)
    return x * x if os.getppid() > 3 else 0
""",
    "reads a process's command line": "def f(x):\n    open('/proc/1/cmdline').read()\n    return x * x",
    "reads the machine's load": "def f(x):\n    open('/proc/loadavg').read()\n    return x * x",
    "reads the list of mounts": "def f(x):\n    open('/proc/self/mountinfo').read()\n    return x * x",
    "reads the devices": "import os\ndef f(x):\n    return x * x if len(os.listdir('/dev')) > 5 else 0",
    "connects to the loopback": """
import socket
def f(x):
    with socket.create_connection(('127.0.0.1', {port}), 1):
        return x * x
""",
    "connects to an abstract socket": """
import socket
def f(x):
    socket.socket(socket.AF_UNIX).connect('\\0{abstract}')
    return x * x
""",
    "sends a datagram": """
import socket
def f(x):
    socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))
    return x * x
""",
    "knows the machine's name": "import os\ndef f(x):\n    return x * x if os.uname().nodename == {name!r} else 0",
}

# Kept from rlimits: they would do harm there. The guard keeps them from it where a pid namespace fails.
GUARD = "import os, signal, time\nif os.getpid() > 3 or os.getuid() == 0:\n    raise SystemExit\n"
NAMESPACES_ONLY = {
    "fork bomb": "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "fork bomb of sleepers": """
def f(x):
    for _ in range(40):
        if os.fork() == 0:
            time.sleep(60)
    return x * x
""",
    "daemon that closes all": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.closerange(0, 64)
        time.sleep(60)
    os._exit(0)
def f(x):
    return 0
""",
    "daemon that forgets its parent's death": """
import ctypes
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
os.fork() or os.setsid()
while True:
    time.sleep(60)
""",
    "kills everything": "os.kill(-1, signal.SIGKILL)\nos._exit(0)",
    "kills its group": "os.killpg(0, signal.SIGKILL)\nos._exit(0)",
    "kills its parent": "os.kill(os.getppid() or 1, signal.SIGKILL)\nos._exit(0)",
    "kills by number": """
def f(x):
    for pid in range(4, 40000):
        try:
            os.kill(pid, signal.SIGKILL)
            return x * x
        except ProcessLookupError:
            pass
""",
    "stops its parent": "def f(x):\n    os.kill(os.getppid() or 4, signal.SIGSTOP)\n    time.sleep(60)",
    "stops everything": "def f(x):\n    os.kill(-1, signal.SIGSTOP)\n    time.sleep(60)",
    "fills the disk": """
def f(x):
    for number in range(64):
        with open(str(number), 'wb') as file:
            file.write(bytes((1 << 20) - 1))
    return x * x
""",
    "many small files": """
def f(x):
    for number in range(5000):
        open(str(number), 'w').close()
    return x * x
""",
    "many folders": """
def f(x):
    for _ in range(5000):
        os.mkdir('d')
        os.chdir('d')
    return x * x
""",
    "writes to the root": f"def f(x):\n    open('/{MARK}', 'w').write('x')\n    return x * x",
    "writes to /usr": f"def f(x):\n    open('/usr/{MARK}', 'w').write('x')\n    return x * x",
    "writes to the interpreter": f"""
import sys
def f(x):
    open(sys.prefix + '/{MARK}', 'w').write('x')
    return x * x
""",
    "writes to the victim's folder": f"def f(x):\n    open({{victim!r}} + '/{MARK}', 'w').write('x')\n    return x * x",
    "writes the victim's file": "def f(x):\n    open({victim!r} + '/secret', 'w').write('x')\n    return x * x",
    "removes the victim's file": "def f(x):\n    os.remove({victim!r} + '/secret')\n    return x * x",
    "writes by a symlink": f"""
def f(x):
    os.symlink({{victim!r}}, 'link')
    open('link/{MARK}', 'w').write('x')
    return x * x
""",
    "links a file of the system": "def f(x):\n    os.link('/usr/bin/env', 'env')\n    return x * x",
    "writes to shared memory": f"def f(x):\n    open('/dev/shm/{MARK}', 'w').write('x')\n    return x * x",
    "makes a device": """
def f(x):
    os.mknod('mem', 0o20666, os.makedev(1, 1))
    open('mem', 'rb')
    return x * x
""",
    "reads the environment of process 1": "def f(x):\n    open('/proc/1/environ').read()\n    return x * x",
    "reads the interpreter's home": "def f(x):\n    os.listdir({home!r} + '/.ssh')\n    return x * x",
    "reads the repository": """
def f(x):
    os.listdir({root!r})
    return x * x if 'harness' in os.listdir({root!r}) else 0
""",
    "escapes by a folder that it holds open": """
def f(x):
    above = os.open('/', os.O_RDONLY)
    os.mkdir('jail')
    os.fchdir(above)
    os.chdir('../' * 40)
    open('etc/passwd').read()
    return x * x
""",
    "escapes by an inherited descriptor": """
def f(x):
    for descriptor in range(3, 256):
        try:
            os.stat('etc/passwd', dir_fd=descriptor)
            return x * x
        except OSError:
            pass
""",
    "traces process 1 or 2": """
import ctypes
def f(x):
    return x * x if ctypes.CDLL(None).ptrace(16, 3 - os.getpid() if os.getpid() < 3 else 1, 0, 0) == 0 else 0
""",
    "makes a user namespace": """
import ctypes
def f(x):
    return x * x if ctypes.CDLL(None).unshare(0x10000000) == 0 else 0
""",
    "makes a mount namespace": """
import ctypes
def f(x):
    return x * x if ctypes.CDLL(None).unshare(0x20000) == 0 else 0
""",
    "unmounts its scratch folder": """
import ctypes
def f(x):
    return x * x if ctypes.CDLL(None).umount2(b'/tmp', 2) == 0 else 0
""",
    "makes the root writable": """
import ctypes
def f(x):
    return x * x if ctypes.CDLL(None).mount(None, b'/', None, 0x20 | 0x1000, None) == 0 else 0
""",
    "has a capability": """
import ctypes
def f(x):
    head, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capget(head, data) == 0
    return x * x if any(data[part] for part in (0, 1, 3, 4)) else 0
""",
    "can win rights": """
import ctypes
def f(x):
    return 0 if ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 1 else x * x
""",
    "sends to the network": """
import socket
def f(x):
    socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))
    return x * x
""",
    "asks a name server": "import socket\ndef f(x):\n    socket.getaddrinfo('example.org', 80)\n    return x * x",
    "listens for others": """
import socket
def f(x):
    server = socket.create_server(('127.0.0.1', 0))
    socket.create_connection(server.getsockname(), 1)
    return x * x
""",
    "makes raw packets": """
import socket
def f(x):
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    return x * x
""",
    "IPv6": "import socket\ndef f(x):\n    socket.create_connection(('::1', {port}), 1)\n    return x * x",
    "sets the clock": "def f(x):\n    time.clock_settime(time.CLOCK_REALTIME, 0)\n    return x * x",
    "names the machine": "import socket\ndef f(x):\n    socket.sethostname('x')\n    return x * x",
}
