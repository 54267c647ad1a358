"""What the supervisor prints while the service starts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

import pytest

from app.embedded.supervisor import greet

_REPLY = b"HTTP/1.1 %d -\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("replies", "mentions_the_store"),
    [([b"", b"", _REPLY % 200], False), ([b"", _REPLY % 503, _REPLY % 503, _REPLY % 200], True)],
    ids=["service that starts slowly", "store that is away"],
)
def test_greet__until_ready__blames_the_store_only_if_the_service_does(
    replies: Sequence[bytes], mentions_the_store: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for reply in replies:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(reply)

        serving = threading.Thread(target=serve)
        serving.start()
        greet(server.getsockname()[1], "the guide", pause=0)
        serving.join()
    printed, said = capsys.readouterr()
    assert printed == "the guide\n"
    assert said.count("its store is not available yet") == mentions_the_store
