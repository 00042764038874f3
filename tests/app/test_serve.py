"""The address that the app prints; that it answers there is for test_browser.py."""

import ipaddress
import socket

import pytest

from covidlib.app import serve


@pytest.mark.parametrize("ip, token, wanted", [
    ("127.0.0.1", None, "http://127.0.0.1:8866"),
    ("192.0.2.7", "secret", "http://192.0.2.7:8866/?token=secret"),
    ("::1", None, "http://[::1]:8866"),
    ("0.0.0.0", "secret", f"http://{socket.gethostname()}:8866/?token=secret"),
    ("::", "secret", f"http://{socket.gethostname()}:8866/?token=secret"),
])
def test_the_address_can_be_typed(ip, token, wanted):
    assert serve.address(ipaddress.ip_address(ip), 8866, token) == wanted
