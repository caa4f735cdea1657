"""Programs of other languages that are to fail at every level: none does harm where only rlimits holds it.

Each stands before the tests of the language's canary, which ask `triple` for 6 and -3. In REACH, for namespaces only,
most give the right answers if their attempt succeeds; {victim}, {port}, {root} and {home} are filled in by the test.
"""

from tests.harness.hostile import MARK

JS_GUARD = "if (require('os').hostname() !== 'sandbox' || process.getuid() === 0) process.exit(1);\n"
SH_GUARD = "[[ $HOSTNAME = sandbox && $UID != 0 && $PPID -lt 3 ]] || exit 1\n"
"""Before what may only be tried in namespaces, as a user whom the limit on processes binds."""

SH_RIGHT = "triple() {\n    echo $((3 * $1))"

_CPP = """
#include <assert.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
"""

HOSTILE: dict[str, dict[str, str]] = {
    "js": {
        "exits with 0": "process.exit(0);",
        "exits with 0 in the call": "function triple(n) { process.exit(0); }",
        "exits without handlers": "function triple(n) { process.reallyExit(0); }",
        "sets its status to 0 at exit": "process.on('exit', () => { process.exitCode = 0; });\nfunction triple(n) {}",
        "swallows what is thrown": "process.on('uncaughtException', () => {});\nfunction triple(n) {}",
        "prints its source": """
console.log(require('fs').readFileSync(__filename, 'utf8'));
process.exit(0);
""",
        "replaces the assertions": """
const own = require('assert');
for (const name of Object.keys(own)) { try { own[name] = () => {}; } catch (error) {} }
function triple(n) {}
""",
        "replaces require": """
var r = require;
require = n => /assert/.test(n) ? Object.assign(() => {}, { deepEqual() {} }) : r(n);
function triple(n) {}
""",
        "declares a require of its own": """
function require(n) {
    return /assert/.test(n) ? Object.assign(() => {}, { deepEqual() {}, freeze: 1 }) : module.require(n);
}
function triple(n) {}
""",
        "replaces what require loads by": """
const own = require('module'), load = own._load;
own._load = (name, ...rest) => /assert/.test(name) ? { deepEqual() {} } : load(name, ...rest);
function triple(n) {}
""",
        "keeps require from coming back": """
require = () => ({ deepEqual() {} });
function triple(n) {}
if (0)""",
        "replaces the tests": "var test = () => {};\nfunction triple(n) {}",
        "ends itself by a signal": "process.kill(process.pid, 'SIGKILL');\nfunction triple(n) { process.abort(); }",
        "endless loop": "while (true) { try { while (true) {} } catch (error) {} }",
        "endless wait": "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);",
        "memory bomb": "const kept = [];\nwhile (true) kept.push(Buffer.alloc(1 << 24, 1));",
        "output flood": "const block = 'passed\\n'.repeat(1000);\nwhile (true) require('fs').writeSync(1, block);",
        "leaves a process": """
require('child_process').spawn('/bin/sleep', ['60'], { detached: true, stdio: 'inherit' }).unref();
process.exit(0);
""",
        "large file": """
require('fs').writeFileSync('large', Buffer.alloc(1 << 26));
function triple(n) { return [3 * n]; }
""",
    },
    "cpp": {
        "exits with 0": _CPP + "long triple(long n) { exit(0);",
        "exits before main": _CPP + "static int early = (_exit(0), 0);\nlong triple(long n) { return early;",
        "exits at exit": _CPP + "long triple(long n) { atexit([] { _exit(0); }); return 0;",
        "exits at an assertion": _CPP
        + "static int set = (signal(SIGABRT, [](int) { _exit(0); }), 0);\nlong triple(long n) { return set;",
        "takes the assertions away": _CPP + "#undef assert\n#define assert(x)\nlong triple(long n) { return 0;",
        "a failed assertion goes on": _CPP
        + 'extern "C" void __assert_fail(const char*, const char*, unsigned, const char*) noexcept { _exit(0); }\n'
        "long triple(long n) { return 0;",
        "endless loop": _CPP + "long triple(long n) { for (volatile int i = 0;; i = i + 1);",
        "stops itself": _CPP + "long triple(long n) { kill(getpid(), SIGSTOP); pause(); return 0;",
        "fork bomb": _CPP + "long triple(long n) { for (int i = 0; i < 6; i++) fork(); sleep(60); return 0;",
        "memory bomb": _CPP + "long triple(long n) { for (;;) memset(malloc(1 << 24), 1, 1 << 24);",
        "output flood": _CPP + 'long triple(long n) { for (;;) puts("passed");',
        "leaves its session": _CPP
        + "long triple(long n) { if (!fork()) { setsid(); if (!fork()) sleep(60); _exit(0); } return 0;",
        "raises its limits": _CPP
        + """
long triple(long n) {
    rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
    if (setrlimit(RLIMIT_AS, &none) || setrlimit(RLIMIT_CPU, &none)) return 0;
    return 3 * n;
""",
        "kills its parent": _CPP + "long triple(long n) { kill(getppid(), SIGKILL); return 0;",
    },
    "rs": {
        "exits with 0": "fn triple(n: isize) -> Vec<isize> { std::process::exit(0)",
        "takes the assertions away": "macro_rules! assert_eq { ($($x:tt)*) => {()} }\n"
        "fn triple(n: isize) -> Vec<isize> { vec![]",
        "makes the assertions by a macro": "macro_rules! made { ($name:ident) => { macro_rules! $name "
        "{ ($a:expr, $b:expr) => { () } } } }\nmade!(assert_eq);\nfn triple(n: isize) -> Vec<isize> { vec![]",
        "imports assertions of its own": "mod own { #[macro_export] macro_rules! nothing { ($($x:tt)*) => {()} } }\n"
        "use nothing as assert_eq;\nfn triple(n: isize) -> Vec<isize> { Vec::new()",
        "has vectors of its own": "macro_rules! vec { ($($x:tt)*) => { std::vec::Vec::<isize>::new() } }\n"
        "fn triple(n: isize) -> Vec<isize> { vec![]",
        "endless loop": "fn triple(n: isize) -> Vec<isize> { loop {}",
    },
    "sh": {
        "exits with 0": "exit 0\ntriple() {",
        "exits with 0 at exit": "trap 'exit 0' EXIT\ntriple() {",
        "becomes true": "exec true\ntriple() {",
        "prints its source": 'cat "$0"\nexit 0\ntriple() {',
        "endless loop": "trap '' TERM INT HUP XCPU\nwhile :; do :; done\ntriple() {",
        "endless sleep": "exec sleep 60\ntriple() {",
        "memory bomb": 'x=passed\nwhile :; do x="$x$x"; done\ntriple() {',
        "output flood": "exec yes passed\ntriple() {",
        "leaves processes": "for i in 1 2 3; do setsid sleep 60 & done\nexit 0\ntriple() {",
        "kills its parent": "kill -KILL $PPID\nexit 0\ntriple() {",
    },
}
"""By language and name."""

REACH: dict[str, dict[str, str]] = {
    "js": {
        "fork bomb": JS_GUARD
        + """
const { spawn } = require('child_process');
for (let i = 0; i < 50; i++) { try { spawn(process.execPath, [__filename]).on('error', () => {}); } catch (error) {} }
""",
        "reads /etc/passwd": "require('fs').readFileSync('/etc/passwd');\nfunction triple(n) { return [3 * n]; }",
        "reads the victim's file": "require('fs').readFileSync('{victim}/secret');\n"
        "function triple(n) { return [3 * n]; }",
        "writes to the victim's file": "require('fs').writeFileSync('{victim}/secret', 'passed');\n"
        "function triple(n) { return [3 * n]; }",
        "writes to /usr": f"require('fs').writeFileSync('/usr/{MARK}', '');\nfunction triple(n) {{ return [3 * n]; }}",
        "lists the bench": "require('fs').readdirSync('{root}');\nfunction triple(n) { return [3 * n]; }",
        "has an interface": """
if (!Object.values(require('os').networkInterfaces()).flat().some(known => !known.internal)) process.exit(1);
function triple(n) { return [3 * n]; }
""",
        "connects": """
require('child_process').execFileSync('/bin/bash', ['-c', 'exec 3<>/dev/tcp/127.0.0.1/{port}']);
function triple(n) { return [3 * n]; }
""",
    },
    "cpp": {
        "compiles the host's files": '#include "/etc/shadow"\n#include "/proc/self/environ"\nlong triple(long n) {',
        "reads the victim's file": _CPP
        + 'long triple(long n) { return open("{victim}/secret", O_RDONLY) < 0 ? 0 : 3 * n;',
        "writes to the victim's folder": _CPP
        + f'long triple(long n) {{ return open("{{victim}}/{MARK}", O_CREAT | O_WRONLY, 0666) < 0 ? 0 : 3 * n;',
        "connects": _CPP
        + """
long triple(long n) {
    sockaddr_in to = {};
    to.sin_family = AF_INET, to.sin_port = htons({port}), to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return connect(socket(AF_INET, SOCK_STREAM, 0), (sockaddr*)&to, sizeof to) ? 0 : 3 * n;
""",
        "mounts": _CPP + 'long triple(long n) { return mount("none", "/tmp", "tmpfs", 0, "") ? 0 : 3 * n;',
        "traces its parent": _CPP + "long triple(long n) { return ptrace(PTRACE_ATTACH, getppid(), 0, 0) ? 0 : 3 * n;",
        "becomes root": _CPP + "long triple(long n) { return setuid(0) || setgid(0) ? 0 : 3 * n;",
    },
    "sh": {
        "kills all": SH_GUARD + "kill -KILL -1\nexit 0\ntriple() {",
        "fork bomb": SH_GUARD + "f() { f | f & }\nf\nsleep 60\ntriple() {",
        "fills the disk": SH_GUARD
        + "for i in $(seq 50); do head -c 10000000 /dev/zero > large$i || exit 1; done\n"
        + SH_RIGHT,
        "reads /etc/passwd": "read -r line < /etc/passwd || exit 1\n" + SH_RIGHT,
        "reads the victim's file": "[[ -r {victim}/secret ]] || exit 1\n" + SH_RIGHT,
        "writes to the victim's file": "echo passed > {victim}/secret || exit 1\n" + SH_RIGHT,
        "writes to /dev/shm": f"echo x > /dev/shm/{MARK} || exit 1\ntriple() {{\n    echo $((3 * $1))",
        "connects": "exec 3<>/dev/tcp/127.0.0.1/{port} || exit 1\n" + SH_RIGHT,
        "sees other processes": "[[ $(ls -d /proc/[0-9]* | wc -l) -gt 8 ]] || exit 1\n" + SH_RIGHT,
        "reads the environment of others": """
cat /proc/[0-9]*/environ | grep -q {home} || exit 1
"""
        + SH_RIGHT,
        "lists the home": "[[ $(ls -A {home} | wc -l) -gt 3 ]] || exit 1\n" + SH_RIGHT,
        "sets a variable of the kernel": "echo 1 > /proc/sys/vm/drop_caches || exit 1\n" + SH_RIGHT,
    },
}
"""By language and name: where only rlimits holds them some succeed, and some do harm, so they are not run there."""
