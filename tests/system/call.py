#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""call.py METHOD [PARAMETERS]: one call of usmd's control interface, as a Varlink client makes it.

Prints the first reply as JSON.
"""
import json
import socket
import sys

s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
s.settimeout(20)
s.connect('/run/usmd/io.usmd.Manager')
parameters = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
call = {'method': sys.argv[1], 'parameters': parameters, 'more': sys.argv[1].endswith('.Monitor')}
s.sendall(json.dumps(call).encode() + b'\0')
reply = b''
while b'\0' not in reply:
    data = s.recv(65536)
    if not data:
        sys.exit('the connection was closed')
    reply += data
print(reply.split(b'\0')[0].decode())
