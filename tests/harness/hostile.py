"""Programs that are to fail at every level of the sandbox: none of them does harm where only rlimits holds it."""

MARK = "left-by-a-hostile-program"

HOSTILE = {
    "loop that swallows exceptions": """
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
    "loop in the call": "def f(x):\n    while True:\n        pass",
    "sleep that ignores signals": """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def f(x):
    while True:
        time.sleep(1)
""",
    "small fork bomb": """
import os, time
for _ in range(4):
    os.fork()
time.sleep(60)
""",
    "daemon that leaves its session": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
def f(x):
    return None
""",
    "memory bomb": "def f(x):\n    block = []\n    while True:\n        block.append(bytearray(1 << 24))",
    "output flood": "def f(x):\n    while True:\n        print('passed' * 1000)",
    "flood of the reply": "def f(x):\n    return 'passed' * (1 << 20)",
    "flood of every descriptor": """
import os
def f(x):
    while True:
        for descriptor in range(32):
            try:
                os.write(descriptor, b'passed\\n' * 1000)
            except OSError:
                pass
""",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "sys.exit(0) in the call": "import sys\ndef f(x):\n    sys.exit(0)",
    "os._exit(0)": "import os\nos._exit(0)",
    "os._exit(0) in the call": "import os\ndef f(x):\n    os._exit(0)",
    "os._exit(0) at exit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "forged prints": "print('passed')\nprint(True)\ndef f(x):\n    print('passed')\n    return 'passed'",
    "forged replies": """
import os
for descriptor in range(32):
    try:
        os.write(descriptor, b"{'ready': ['f']}\\n{'value': {'passed': True}}\\n{'value': True}\\n")
    except OSError:
        pass
""",
    "equals everything": """
class Any:
    def __eq__(self, other):
        return True
def f(x):
    return Any()
""",
    "equal int subclass": """
class Any(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__
def f(x):
    return Any(7)
""",
    "frames and argv": """
import gc, sys
def f(x):
    frame = sys._getframe()
    found = [sys.orig_argv, sys.argv]
    while frame:
        found.append(sorted(map(str, frame.f_globals)))
        for name, value in frame.f_locals.items():
            if isinstance(value, dict) and 'passed' in value:
                value['passed'] = True
        frame = frame.f_back
    for thing in gc.get_objects():
        if callable(thing) and getattr(thing, '__name__', '') == 'check':
            return 4
    return str(found)
""",
    "raises the exception of a failed comparison": "def f(x):\n    raise AssertionError('passed')",
    "raises BaseException": "def f(x):\n    raise BaseException('passed')",
    "no such function": "def g(x):\n    return x * x",
    "not Python": "def f(x:\n",
    "null byte": "def f(x):\n    return x\0",
    "raises its limits": """
import resource
def f(x):
    for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
        resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return x * x
""",
    "large file": "def f(x):\n    open('large', 'wb').write(bytes(1 << 24))\n    return x * x",
    "many open files": "def f(x):\n    kept = [open('/dev/null') for _ in range(200)]\n    return x * x",
    "reads the supervisor's memory": """
import os
def f(x):
    open(f'/proc/{os.getppid()}/mem', 'rb').read(1)
    return x * x
""",
    "opens the supervisor's pipes": """
import os
def f(x):
    for number in range(3, 16):
        try:
            os.readlink(f'/proc/{os.getppid()}/fd/{number}')
            return x * x
        except FileNotFoundError:
            pass
""",
    "kills its supervisor": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "deep nesting": "def f(x):\n    value = []\n    for _ in range(100000):\n        value = [value]\n    return value",
    "raise SystemExit": "raise SystemExit(0)",
    "ends itself by a signal": "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSEGV)\n    os.abort()",
    "stops itself": "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    os._exit(0)",
    "stack overflow": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return [f(x)][0]",
    "ctypes crash": "import ctypes\ndef f(x):\n    return ctypes.string_at(0)",
    "threads that do not end": """
import threading
def g():
    while True:
        pass
for _ in range(8):
    threading.Thread(target=g).start()
""",
    "threads without number": """
import threading, time
def f(x):
    while True:
        threading.Thread(target=time.sleep, args=(60,)).start()
""",
    "large power": "def f(x):\n    return 9 ** 9 ** 9",
    "slow regular expression": "import re\ndef f(x):\n    return re.match('(a+)+b', 'a' * 64)",
    "iterator without end": "import itertools\ndef f(x):\n    return sum(itertools.repeat(0))",
    "raises in __del__ and waits": "import time\nclass C:\n    def __del__(self):\n        time.sleep(60)\nkept = C()",
    "waits at exit": "import atexit, time\natexit.register(time.sleep, 60)\nraise SystemExit",
    "execs another program": "import os\ndef f(x):\n    os.execv('/bin/true', ['true'])",
    "execs one that prints": "import os\nos.execv('/bin/echo', ['echo', 'passed'])",
    "closes its pipes": "import os\nos.closerange(0, 64)\ndef f(x):\n    return 9",
    "reads the requests itself": """
import os
for descriptor in range(3, 32):
    try:
        os.set_blocking(descriptor, False)
        os.read(descriptor, 1 << 20)
    except OSError:
        pass
def f(x):
    return 1
""",
    "replies that are no literals": """
import os
for d in range(3, 32):
    try:
        os.write(d, b'__import__(1)\\n')
    except OSError:
        pass
""",
    "a reply without end": """
import os
while True:
    for d in range(3, 8):
        try:
            os.write(d, b'[' * 9999)
        except OSError:
            pass
""",
    "an error with a class of its own": """
class AssertionError(Exception):
    pass
def f(x):
    raise AssertionError
""",
    "an error that cannot be said": """
class Silent(Exception):
    def __str__(self):
        raise SystemExit(0)
def f(x):
    raise Silent
""",
    "replaces the builtins": """
import builtins
builtins.compile = builtins.exec = builtins.isinstance = lambda *given: True
def f(x):
    return 'passed'
""",
    "replaces the guest's functions": """
import __main__
__main__.encode = lambda value: {'passed': True}
__main__._call = lambda *given: {'value': True}
def f(x):
    return 0
""",
    "a dict that equals everything": """
class Any(dict):
    def __eq__(self, other):
        return True
def f(x):
    return Any()
""",
    "a float that is not": "def f(x):\n    return float('nan')",
    "a list in itself": "def f(x):\n    found = []\n    found.append(found)\n    return found",
    "looks for the test": """
import gc, sys
def f(x):
    found = [thing for thing in gc.get_objects() if isinstance(thing, dict) and ('test' in thing or 'token' in thing)]
    found += [name for name in sys.orig_argv if 'candidate(3)' in name]
    return x * x if found else 0
""",
    "opens more than it may": "import os\ndef f(x):\n    kept = [os.pipe() for _ in range(64)]\n    return x * x",
    "memory by mmap": "import mmap\ndef f(x):\n    kept = mmap.mmap(-1, 1 << 30)\n    return x * x",
    "memory by memfd": "import os\ndef f(x):\n    os.truncate(os.memfd_create('m'), 1 << 30)\n    return x * x",
    "raises the limit on processes": """
import resource
def f(x):
    resource.setrlimit(resource.RLIMIT_NPROC, (1 << 20, 1 << 20))
    return x * x
""",
    "gains a higher priority": "import os\ndef f(x):\n    os.setpriority(os.PRIO_PROCESS, 0, -5)\n    return x * x",
    "mounts": """
import ctypes
def f(x):
    return x * x if ctypes.CDLL(None).mount(b'tmpfs', b'/', b'tmpfs', 0, None) == 0 else 0
""",
    "makes a root of its own": "import os\ndef f(x):\n    os.chroot('.')\n    return x * x",
    "becomes root": "import os\ndef f(x):\n    os.setuid(0)\n    return x * x if os.getuid() != 0 else 0",
    "reads /dev/mem": "def f(x):\n    open('/dev/mem', 'rb').read(1)\n    return x * x",
    "symlink out of its folder": f"""
import os
def f(x):
    os.symlink('/proc/1/root/{MARK}', 'link')
    open('link', 'w').write('x')
    return x * x
""",
}
