"""The filter of system calls under which untrusted code runs, as a classic BPF program for seccomp.

Refused: new processes and other programs (threads are allowed), so that one process's memory limit is the whole memory and
nothing outlives the run; other processes' memory and signals to them; mounts and namespaces; sockets of other families than
Unix; memory that no limit counts; what the kernel offers to administrators. Numbers: the kernel's
`arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` (aarch64).
"""

from __future__ import annotations

import errno
import struct

_REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
    "personality": (135, 92), "sethostname": (170, 161), "setdomainname": (171, 162), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
}  # fmt: skip
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_X32, _CLONE_THREAD, _AF_UNIX = 0x40000000, 0x00010000, 1

Instruction = tuple[int, int, int, int]


def machines() -> tuple[str, ...]:
    """The machines (`platform.machine()`) for which there is a filter."""
    return tuple(_MACHINES)


def program(machine: str) -> bytes:
    """The filter as an array of `struct sock_filter`. Raises `KeyError` for a machine that it does not know."""
    column, architecture = _MACHINES[machine]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        *_unless(_EQUAL, architecture, (_RETURN, 0, 0, _KILL)),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),  # the calls of another binary interface have other numbers
        (_RETURN, 0, 0, _KILL),
        *_when(_CLONE3[column], (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)),  # the C library then uses clone
    ]
    for numbers in _REFUSED.values():
        number = numbers[column]
        lines += [] if number is None else _when(number, refuse)
    argument = (_LOAD, 0, 0, _FIRST_ARGUMENT)
    allow = (_RETURN, 0, 0, _ALLOW)
    lines += [(_EQUAL, 0, 4, _CLONE[column]), argument, *_unless(_ANY_BIT, _CLONE_THREAD, refuse), allow]
    lines += [(_EQUAL, 0, 4, _SOCKET[column]), argument, *_unless(_EQUAL, _AF_UNIX, refuse), allow]
    return b"".join(struct.pack("<HBBI", *line) for line in [*lines, allow])


def _when(number: int, then: Instruction) -> list[Instruction]:
    return [(_EQUAL, 0, 1, number), then]


def _unless(test: int, value: int, then: Instruction) -> list[Instruction]:
    return [(test, 1, 0, value), then]
