"""What a model may write to get out of a sandbox: each prints "reached" where it reached what it wanted.

`python -m tests.environments.attacks` runs them all and prints what came of them as JSON: so they are run as another user.
"""

import json
import sys
from collections.abc import Mapping
from textwrap import dedent, indent

import anyio

from sparring.environments.sandbox import Sandbox
from sparring.environments.sandboxing.result import Limits

LIMITS = Limits(seconds=2, memory=256 << 20, disk=4 << 20, output=20_000)


TRIED = """
import ctypes, os, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def done(result):
    if result < 0: raise OSError(ctypes.get_errno(), 'call')
try:
{body}
except (OSError, MemoryError, RuntimeError, AssertionError) as error:
    print('refused', type(error).__name__, error)
else:
    print('reached')
"""


def tried(body: str) -> str:
    """The program that does `body` and says whether that went."""
    return TRIED.replace("{body}", indent(dedent(body).strip(), "    "))


def called(number: int, *arguments: object) -> str:
    """A system call (of x86-64) that must not succeed."""
    given = ", ".join(map(str, (number, *arguments)))
    return tried(f"done(libc.syscall({given}))")


ATTACKS: Mapping[str, str] = {
    "fork bomb": tried("while True: os.fork()"),
    "another program": tried("os.execv('/bin/sh', ['sh', '-c', 'echo reached'])"),
    "a subprocess": tried("import subprocess\nsubprocess.run(['/bin/true'], check=True)"),
    "an orphan": tried("if os.fork() == 0:\n    os.setsid()\n    time.sleep(100)"),
    "thread bomb": tried("for _ in range(100): threading.Thread(target=time.sleep, args=(100,), daemon=True).start()"),
    "memory": tried("kept = [bytearray(1 << 20) for _ in range(1000)]"),
    "memory by mmap": tried("import mmap\nkept = [mmap.mmap(-1, 64 << 20) for _ in range(100)]"),
    "memory in files of memory": tried("os.memfd_create('x')"),
    "System V memory": called(29, 0, 1 << 20, 0o1600),
    "/dev/shm": tried("open('/dev/shm/x', 'w').write('x')"),
    "fill the disk": tried("for i in range(100):\n    with open(f'/tmp/{i}', 'wb') as f: f.write(bytes(1 << 20))"),
    "many files": tried("for i in range(5000): open(f'/tmp/{i}', 'w').close()"),
    "a sparse file": tried("with open('/tmp/x', 'wb') as f: f.truncate(1 << 40)"),
    "write to the interpreter": tried("open(os.__file__, 'a')"),
    "write beside it": tried("open('/usr/lib/x', 'w')"),
    "write to the root": tried("open('/x', 'w')"),
    "write to /etc": tried("open('/etc/x', 'w')"),
    "the accounts": tried("open('/etc/passwd').read()"),
    "the shadow file": tried("open('/etc/shadow').read()"),
    "other homes": tried("assert [n for n in os.listdir('/root') if n != '.pyenv'] or os.listdir('/home')"),
    "a link out of /tmp": tried("os.symlink('/proc/1/root/etc/passwd', '/tmp/x')\nopen('/tmp/x').read()"),
    "a hard link out of /tmp": tried("os.link('/etc/ld.so.cache', '/tmp/x')"),
    "typing at a terminal": tried("import fcntl\nfcntl.ioctl(0, 0x5412, b'x')"),
    "the host's processes": tried("assert os.listdir('/proc')"),
    "the environment of process 1": tried("open('/proc/1/environ', 'rb').read()"),
    "secrets in its own environment": tried(
        "assert set(os.environ) - {'PYTHONHASHSEED', 'OPENBLAS_NUM_THREADS', 'PWD', 'LC_CTYPE'}"
    ),
    "inherited files": tried(
        "found = []\nfor n in range(4, 1024):\n    try: os.fstat(n); found.append(n)\n    except OSError: pass\nassert found"
    ),
    "the network": tried("socket.create_connection(('1.1.1.1', 53), 1)"),
    "the host's own ports": tried("socket.create_connection(('127.0.0.1', 22), 1)"),
    "names": tried("socket.getaddrinfo('example.com', 80)"),
    "datagrams": tried("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))"),
    "the hypervisor": tried("socket.socket(40, socket.SOCK_STREAM).connect((2, 22))"),
    "the kernel by netlink": tried("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"),
    "abstract sockets": tried(
        "assert any(not socket.socket(socket.AF_UNIX).connect_ex('\\0' + n) for n in ('/tmp/.X11-unix/X0', 'sparring-test'))"
    ),
    "kill its parent": tried("assert os.getppid() > 0\nos.kill(os.getppid(), signal.SIGKILL)"),
    "kill everybody": tried("os.kill(-1, signal.SIGKILL)"),
    "kill others by number": tried(
        "found = []\nfor n in range(2, 5000):\n    try: os.kill(n, 9); found.append(n)\n    except OSError: pass\nassert found"
    ),
    "ptrace": called(101, 16, 1, 0, 0),
    "memory of others": called(310, 1, 0, 0, 0, 0, 0),
    "files of others": called(438, 3, 1, 0),
    "new namespaces": called(272, 0x10000000),
    "new namespaces by clone": called(56, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": called(435, 0, 0),
    "joining namespaces": called(308, 3, 0),
    "mount": tried("done(libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, 0))"),
    "uncover /proc": tried("done(libc.umount2(b'/proc', 2))"),
    "chroot": tried("os.chroot('/tmp')"),
    "io_uring": called(425, 1, 0),
    "bpf": called(321, 0, 0, 0),
    "keys": called(250, 0, -3, 0),
    "perf": called(298, 0, 0, -1, -1, 0),
    "userfaultfd": called(323, 1),
    "other rights": tried("os.setuid(0)\nassert os.getuid() == 0"),
    "the clock": tried("time.clock_settime(time.CLOCK_REALTIME, 0)"),
    "the host's name": tried("socket.sethostname('x')"),
    "a terminal": tried("os.open('/dev/tty', os.O_RDWR)"),
    "devices": tried("os.mknod('/tmp/x', 0o60600, os.makedev(8, 0))\nopen('/tmp/x', 'rb')"),
}
"""Name -> program: none may print "reached"."""


async def outcomes(sandbox: Sandbox) -> dict[str, tuple[str, str]]:
    """Name -> how it ended, and what it printed or was told."""
    found: dict[str, tuple[str, str]] = {}

    async def one(name: str) -> None:
        result = await sandbox.run(ATTACKS[name])
        found[name] = (result.ending.value, result.output + result.error)

    async with anyio.create_task_group() as group:
        for name in ATTACKS:
            group.start_soon(one, name)
    return found


def reached(found: Mapping[str, tuple[str, str]]) -> list[str]:
    """The attacks that reached what they wanted, and those that did not come so far as to say."""
    return [
        f"{name}: {ending}: {text}"
        for name, (ending, text) in sorted(found.items())
        if "reached" in text.splitlines() or not ("refused " in text or ending in ("time", "memory", "killed"))
    ]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(anyio.run(outcomes, Sandbox(limits=LIMITS))))
