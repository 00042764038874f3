"""On PYTHONPATH it keeps every Python process to this machine; what asked for another is a line in OFFLINE_LOG."""

import os
import socket

HERE = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", None, socket.gethostname())


def _only_here(function, place):
    def guarded(*arguments, **options):
        address = arguments[place]
        host = address[0] if isinstance(address, tuple) else address
        host = host.decode() if isinstance(host, bytes) else host
        local = host in HERE or os.path.isabs(str(host)) or str(host).startswith("\0")
        if not local:
            with open(os.environ["OFFLINE_LOG"], "a") as log:
                log.write(f"{host}\n")
            raise OSError(f"offline: {host}")
        return function(*arguments, **options)

    return guarded


socket.getaddrinfo = _only_here(socket.getaddrinfo, 0)
for _name in ("connect", "connect_ex"):
    setattr(socket.socket, _name, _only_here(getattr(socket.socket, _name), 1))
socket.socket.sendto = _only_here(socket.socket.sendto, -1)
