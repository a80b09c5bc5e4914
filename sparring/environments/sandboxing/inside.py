"""The program inside a sandbox: it forks a process for every run, shuts it in, and there runs what a model wrote.

Sent as text to an interpreter without site-packages, so it uses the standard library alone. Three kinds of processes:

server      waits for requests on file 0; each brings four files: talk, report, output, errors
supervisor  one a run, in fresh namespaces: waits for its child's end, or for the host to hang up, and then kills the child
candidate   its child and process 1 of the new namespace: closes what it does not need, gives up what it may, runs the code

What a candidate says is not believed: it crosses as plain values in frames (4 bytes of length, JSON), and the host checks them.
"""

from __future__ import annotations

import atexit
import builtins
import ctypes
import io
import json
import linecache
import math
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import traceback
import types
from importlib import import_module
from typing import Any, NoReturn

_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""Mounts, control groups, host name, System V objects, users, processes, network."""
_NO_SUID, _NO_DEVICES, _NO_PROGRAMS, _READ_ONLY = 2, 4, 8, 1
_SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVS, _FILTER = 4, 22, 38, 2
_CAPABILITY_VERSION = 0x20080522
_DEEPEST, _TEXT = 100, 4000
_EXACT = 1 << 53


def pack(value: Any, depth: int = 0) -> Any:
    """A plain value as JSON data. Raises `ValueError` for any other object: a subclass of `int` is not an `int` here."""
    kind = type(value)
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if -_EXACT < value < _EXACT else {"i": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"f": repr(value)}
    if kind is complex:
        return {"c": [pack(value.real), pack(value.imag)]}
    if kind in (bytes, bytearray):
        return {"b" if kind is bytes else "a": value.hex()}
    if kind is dict:
        return {"d": [[pack(key, depth + 1), pack(item, depth + 1)] for key, item in value.items()]}
    for tag, container in (("", list), ("t", tuple), ("s", set), ("z", frozenset)):
        if kind is container:
            items = [pack(item, depth + 1) for item in value]
            return {tag: items} if tag else items
    raise ValueError(f"it is or holds an object of the type {kind.__name__[:100]!r}, which is no plain value")


def unpack(data: Any, depth: int = 0) -> Any:
    """The value that `pack` wrote. Raises `ValueError` for anything that it never writes."""
    if depth > 2 * _DEEPEST:
        raise ValueError("nested too deep")
    if isinstance(data, list):
        return [unpack(item, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError("no plain value")
    tag, content = next(iter(data.items()))
    if not isinstance(content, str if tag in _WRITTEN else list) or tag not in _READ:
        raise ValueError(f"no plain value: {tag[:10]!r}")
    try:
        return _READ[tag](content if tag in _WRITTEN else [unpack(item, depth + 1) for item in content])
    except (TypeError, OverflowError) as error:
        raise ValueError(f"no plain value: {error}") from error


def _distinct(items: list[Any], most: int = 200) -> list[Any]:
    """`items`, unless so many of them have the same hash that a table of them takes quadratic time."""
    if len(items) - len({hash(item) for item in items}) > most:
        raise ValueError("too many items with equal hashes")
    return items


def _table(pairs: list[Any]) -> dict[Any, Any]:
    if any(type(pair) is not list or len(pair) != 2 for pair in pairs):
        raise ValueError("no dictionary")
    _distinct([key for key, _ in pairs])
    return dict(pairs)


_WRITTEN = frozenset("ifba")
_READ: dict[str, Any] = {
    "i": lambda text: int(text, 16),
    "f": float,
    "b": bytes.fromhex,
    "a": bytearray.fromhex,
    "c": lambda parts: complex(*parts),
    "t": tuple,
    "s": lambda items: set(_distinct(items)),
    "z": lambda items: frozenset(_distinct(items)),
    "d": _table,
}


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, first: Any, second: Any = 0) -> None:
    _checked(_libc.prctl(option, first, second, 0, 0), f"prctl {option}")


def _mount(where: bytes, flags: int, options: str) -> None:
    _checked(_libc.mount(b"tmpfs", where, b"tmpfs", flags, options.encode()), f"mount on {where.decode()}")


def serve(
    isolated: bool, uid: int | None, program: str, folders: list[str], modules: list[str], path: str = ""
) -> NoReturn:
    """The server. `uid` is whose rights it takes on instead of root's; None: it has none to give up. In `folders` are modules
    beside those of the standard library. The host listens at `path`; without one it is at the other end of file 0."""
    if path:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.connect(path)
    else:
        control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        _prctl(_SET_DUMPABLE, 1)  # or /proc/self would still belong to root
    sys.path += folders
    for module in modules:
        import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.send(b"ready")
    while True:
        request, files, _, _ = socket.recv_fds(control, 16, 4)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            _supervise(files, isolated, bytes.fromhex(program))
        for file in files:
            os.close(file)


def _supervise(files: list[int], isolated: bool, program: bytes) -> NoReturn:
    talk, report, *printed = files
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    try:
        if isolated:
            _enter()
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")  # what runs here goes first where memory ends
        child = os.fork()
    except OSError as error:
        _tell(report, {"refused": str(error)})
        os._exit(1)
    if child == 0:
        os.close(report)
        _candidate(talk, printed, isolated, program)
    for file in (talk, *printed):
        os.close(file)
    watched = select.poll()
    watched.register(report, select.POLLIN)
    watched.register(os.pidfd_open(child), select.POLLIN)
    if any(file == report for file, _ in watched.poll()):
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    _tell(report, {"code": code, "cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss * 1024})
    os._exit(0)


def _tell(file: int, message: dict[str, Any]) -> None:
    try:
        os.write(file, _framed(message))
    except BrokenPipeError:
        os._exit(0)  # the host does not want to know


def _enter() -> None:
    """Fresh namespaces for the next child, with one user in them."""
    uid, gid = os.getuid(), os.getgid()
    _checked(_libc.unshare(_NAMESPACES), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _candidate(talk: int, printed: list[int], isolated: bool, program: bytes) -> NoReturn:
    os.dup2(printed[0], 1)
    os.dup2(printed[1], 2)
    os.dup2(talk, 3)
    os.closerange(4, 1024)
    line = socket.socket(fileno=3)
    start = _receive(line)
    try:
        _input(start["stdin"])
        _shut_in(start["limits"], isolated, program)
    except OSError as error:
        _send(line, {"refused": str(error)})
        os._exit(1)
    _send(line, {"ready": True})
    random.seed(0)
    _obey(line)


def _input(text: str) -> None:
    file = os.memfd_create("input")
    with open(file, "wb", closefd=False) as writer:
        writer.write(text.encode(errors="surrogatepass"))
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, 0)
    os.close(file)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8", errors="replace")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _shut_in(limits: dict[str, int], isolated: bool, program: bytes) -> None:
    """Everything that the code must not have goes; the first step that fails is an `OSError`, and the code is not run."""
    if isolated:
        _mount(b"/proc", _NO_SUID | _NO_DEVICES | _NO_PROGRAMS | _READ_ONLY, "size=4k,nr_inodes=2,mode=555")
        _mount(b"/tmp", _NO_SUID | _NO_DEVICES, f"size={limits['disk']},nr_inodes=1024,mode=1777")
        os.chdir("/tmp")
        _limit(resource.RLIMIT_NPROC, limits["threads"] + 2)  # counted in this namespace: the supervisor and this one
    _limit(resource.RLIMIT_AS, limits["memory"])
    _limit(resource.RLIMIT_FSIZE, max(limits["disk"], limits["output"]))
    _limit(resource.RLIMIT_CPU, limits["seconds"])
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_CORE, 0)
    header, none = struct.pack("<Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _checked(_libc.capset(header, none), "capset")
    _prctl(_SET_NO_NEW_PRIVS, 1)
    array = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(array))
    _prctl(_SET_SECCOMP, _FILTER, described)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _framed(message: dict[str, Any]) -> bytes:
    content = json.dumps(message).encode()
    return struct.pack(">I", len(content)) + content


def _send(line: socket.socket, message: dict[str, Any]) -> None:
    line.sendall(_framed(message))


def _receive(line: socket.socket) -> dict[str, Any]:
    """The next frame; the end of the conversation is the end of the process."""
    length = struct.unpack(">I", _exactly(line, 4))[0]
    message: dict[str, Any] = json.loads(_exactly(line, length))
    return message


def _exactly(line: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = line.recv(length - len(parts))
        if not part:
            os._exit(0)
        parts += part
    return bytes(parts)


def _obey(line: socket.socket) -> NoReturn:
    """What the host asks for, one after the other: run a text, offer a function of the host's, call a function."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    names = module.__dict__
    for name in ("exit", "quit"):  # what `site` would have brought
        setattr(builtins, name, sys.exit)
    while True:
        message = _receive(line)
        last = bool(message.get("last"))
        try:
            try:
                result = {"value": pack(_carry_out(message, names, line))}
            finally:
                if last:
                    _end()
        except SystemExit as error:
            result = {"exit": error.code if isinstance(error.code, int) else int(error.code is not None)}
        except BaseException as error:  # noqa: BLE001 - whatever untrusted code raises is its answer
            result = {"error": [type(error).__name__[:100], _described(error)]}
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        _send(line, result)
        if last:
            os._exit(0)


def _carry_out(message: dict[str, Any], names: dict[str, Any], line: socket.socket) -> Any:
    if "run" in message:
        source, name = message["run"], message["name"]
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, "exec", dont_inherit=True), names)  # noqa: S102 - this is what the box is for
        return None
    if "offer" in message:
        names[message["offer"]] = lambda *args, **kwargs: _ask(line, args, kwargs)
        return None
    args, kwargs = unpack(message["args"]), unpack(message["kwargs"])
    return names[message["call"]](*args, **kwargs)


def _ask(line: socket.socket, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that the host offers: the host passes it on to another sandbox."""
    _send(line, {"ask": [pack(list(args)), pack(kwargs)]})
    answer = _receive(line)
    if "failed" in answer:
        raise RuntimeError(answer["failed"])
    return unpack(answer["answer"])


def _end() -> None:
    """What an interpreter does at its end."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]


def _described(error: BaseException) -> str:
    """The end of its traceback, without the frames of this file."""
    try:
        shown = traceback.TracebackException.from_exception(error, limit=-4)
        shown.stack = traceback.StackSummary.from_list([f for f in shown.stack if f.filename != "<string>"])
        return "".join(shown.format(chain=False))[-_TEXT:]
    except BaseException as second:  # noqa: BLE001 - exceptions can be tricks too
        return f"an exception that cannot be shown ({type(second).__name__[:100]})"
