#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients of usmd's sockets that mean no good.

hostile.py DIR WHAT [N]: connects to the sockets in DIR, does WHAT, and says in lines of
"key value" what came of it. Those that hold something for others to look at say "ready" and go
on until their input ends.
"""
import array
import ctypes
import fcntl
import json
import mmap
import os
import random
import select
import signal
import socket
import struct
import sys
import time

GET_STATUS = b'{"method":"io.usmd.Manager.GetStatus"}\0'
MONITOR = b'{"method":"io.usmd.Manager.Monitor","more":true}\0'
# struct usm_attach_msg of lib/attach.h
MESSAGE = struct.Struct('=IHHIIIiQQQQQQQ128s')
MAGIC, VERSION = 0x75736d61, 2
HELLO, REFUSE, READY, DONE = 1, 3, 4, 7
CHILD = 1
USERFAULTFD_IOC_NEW = 0xaa00

directory = sys.argv[1]


def control():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.connect(directory + '/io.usmd.Manager')
    s.settimeout(30)
    return s


def attach():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(directory + '/attach')
    s.settimeout(30)
    return s


def message(kind, magic=MAGIC, version=VERSION, flags=0, staging=0, trash=0, marker=0, nonce=0):
    return MESSAGE.pack(magic, version, kind, flags, 0, 0, 0, staging, trash, marker, nonce, 0, 0,
                        0, b'')


def rights(fds):
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))]


def send_all(s, data):
    """True if the peer took all of it."""
    try:
        s.sendall(data)
        return True
    except (BrokenPipeError, ConnectionResetError):
        return False


def answer(s):
    """What came until the end of the connection."""
    data = b''
    try:
        while True:
            piece = s.recv(65536)
            if not piece:
                return data
            data += piece
    except ConnectionResetError:
        return data


def reason(data):
    """The reason of the last reply, which must be an error."""
    reply = json.loads(data.split(b'\0')[-2])
    return f"{reply['error']}: {reply['parameters']['reason']}"


def hold():
    print('ready', flush=True)
    sys.stdin.read()


def garbage(n):
    """n clients, each with bytes that are no message; all must be told."""
    random.seed(1)
    for _ in range(n):
        s = control()
        send_all(s, b'\1' + random.randbytes(random.randrange(3000)) + b'\0')
        print('reply', reason(answer(s)))


def large(mib):
    """One message of so many MiB."""
    s = control()
    took = 0
    while took < mib and send_all(s, b' ' * (1 << 20)):
        took += 1
    print('took', took)
    print('reply', reason(answer(s)))


def half(n):
    """n clients that fall silent in the middle of their message."""
    clients = [control() for _ in range(n)]
    for s in clients:
        send_all(s, GET_STATUS[:20])
    print('ready', flush=True)
    for s in clients:
        print('reply', reason(answer(s)))


def crowd(n):
    """n clients at once; all get an answer or are told that they are too many."""
    clients, served, refused = [], 0, 0
    for _ in range(n):
        s = control()
        clients.append(s)
        send_all(s, GET_STATUS)
        data = s.recv(65536)
        if b'"error"' in data:
            refused += b'too many clients' in data
        else:
            served += b'"keeperPid"' in data
    print('served', served)
    print('refused', refused)
    hold()


def deaf(n):
    """n clients that listen to Monitor and never read, and one that asks on and on."""
    clients = [control() for _ in range(n)]
    for s in clients:
        send_all(s, MONITOR)
    s = control()
    sent = 0
    while sent < 100000 and send_all(s, GET_STATUS * 100):
        sent += 100
    print('sent', sent)
    hold()


def refusal(s):
    """What the daemon answers: the text of REFUSE, the type of another message, or nothing."""
    try:
        data = s.recv(4096)
    except ConnectionResetError:
        return 'nothing'
    if not data:
        return 'nothing'
    fields = MESSAGE.unpack(data)
    return fields[-1].rstrip(b'\0').decode() if fields[2] == REFUSE else f'message {fields[2]}'


def packets(n):
    """Packets that break the protocol, each on n connections; all must be broken off."""
    null = os.open('/dev/null', os.O_RDONLY)
    areas = {'staging': 0x7f0000000000, 'trash': 0x7f0000200000, 'marker': 0x7f0000400000}
    ready = message(READY, **areas)
    random.seed(1)
    cases = {
        'empty': [(b'', [null] * 4)],
        'short': [(b'x', [null])],
        'long': [(message(HELLO) + b'x', [null])],
        'garbage': [(random.randbytes(MESSAGE.size), [null] * 2)],
        'type': [(message(99), [null])],
        'many': [(message(HELLO), [null] * 100)],
        'ready-first': [(ready, [null] * 2)],
        'done-first': [(message(DONE), [])],
        'hello-twice': [(message(HELLO), []), (message(HELLO), [null])],
        'no-userfaultfd': [(message(HELLO), []), (ready, [null] * 2)],
        'child': [(message(HELLO, flags=CHILD), []), (ready, [null])],
        'nonce': [(message(HELLO, flags=CHILD, nonce=1), []), (ready, [null])],
        'version': [(message(HELLO, version=1), [null])],
    }
    for name, parts in cases.items():
        for _ in range(n):
            s = attach()
            told = []
            for data, fds in parts:
                try:
                    s.sendmsg([data], rights(fds) if fds else [])
                except (BrokenPipeError, ConnectionResetError):
                    break
                told.append(refusal(s))
            s.close()
        print(name, '; '.join(told))


def silent(n):
    """n handshakes that are begun, every other one by HELLO, and not finished."""
    connections, told = [], 0
    for i in range(n):
        s = attach()
        connections.append(s)
        if i % 2:
            try:
                s.send(message(HELLO))
            except (BrokenPipeError, ConnectionResetError):
                pass
    time.sleep(1)
    ended = 0
    for s in select.select(connections, [], [], 0)[0]:
        text = refusal(s)
        told += 'too many' in text
        ended += not text.startswith('message')
    print('held', n - ended)
    print('told', told)
    hold()


def lingering(kept):
    """A descriptor whose last close() waits for a minute, for a peer that reads nothing."""
    listener = socket.socket()
    listener.bind(('127.0.0.1', 0))
    listener.listen()
    s = socket.create_connection(listener.getsockname())
    kept.append(listener.accept()[0])
    s.setblocking(False)
    try:
        while True:
            s.send(b' ' * 65536)
    except BlockingIOError:
        pass
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 60))
    return s


def linger(n):
    """Passes descriptors over each socket, n times: with what will be read, and with what will not
    be because there was something wrong before it. The daemon must be stopped meanwhile, or the
    last close() would be ours at times."""
    kept = []
    for _ in range(n):
        for dial, data in ((control, b'x\0'), (attach, message(99))):
            s = dial()
            for _ in range(2):
                with lingering(kept) as passed:
                    s.sendmsg([data], rights([passed.fileno()]))
            s.close()
    print('passed', len(kept))
    hold()


def sender(s, start):
    """Sends without end, in a process of its own."""
    signal.alarm(60)
    os.read(start, 1)
    done = message(DONE)
    try:
        while True:
            s.send(done)
    except OSError:
        os._exit(0)


def flood(n):
    """A managed program without a true agent, n processes of which send for it without end."""
    s = attach()
    s.settimeout(None)
    start, begin = os.pipe()
    senders = []
    for _ in range(n):
        pid = os.fork()
        if pid == 0:
            sender(s, start)
        senders.append(pid)
    s.send(message(HELLO))
    data, fds, _, _ = socket.recv_fds(s, 4096, 4)
    u = [fcntl.ioctl(fds[0], USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(2)]
    areas = [mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
             for pages in (256, 256, 1)]
    staging, trash, marker = (ctypes.addressof(ctypes.c_char.from_buffer(a)) for a in areas)
    s.sendmsg([message(READY, staging=staging, trash=trash, marker=marker)], rights(u))
    print('answer', refusal(s))
    os.write(begin, b' ' * n)
    try:
        hold()
    finally:
        for pid in senders:
            os.kill(pid, signal.SIGKILL)


what = {f.__name__: f for f in (garbage, large, half, crowd, deaf, packets, silent, linger, flood)}
what[sys.argv[2]](*map(int, sys.argv[3:]))
