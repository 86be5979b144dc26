"""Tests of servers that stall, refuse, break off or send other data: the address is named, partial data are unused."""

import contextlib
import http.server
import shutil
import socket
import threading
import time

import pytest
import waiting
from mirrors import EVERYTHING, fetch, run, serving, unpacked

pytestmark = [
    pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed"),
    pytest.mark.usefixtures("direct"),
]


@contextlib.contextmanager
def answering(status, length, body=b"PK"):
    """A server that answers every request with this status, announces `length` bytes and sends `body`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "length", "reason"),
    [
        (404, 2, "error: 404"),
        (403, 2, "error: 403"),
        (416, 2, "error: 416"),
        (500, 2, "error: 500"),
        (200, 1000, "998 bytes remaining to read"),
    ],
)
def test_a_server_that_answers_with_an_error_or_a_short_body_is_named(mirror, root, status, length, reason):
    with answering(status, length) as base:
        done = run("omniglot", str(root), OMNIGLOT_URL=base, FETCH_PATIENCE="2")
    assert done.returncode == 1
    assert done.stderr.startswith(f"fetch_data.sh: cannot download {base}/images_background.zip (")
    assert reason in done.stderr
    assert done.stderr.endswith("; check the network and the address, then run this again\n")
    assert done.stderr.count("\n") == 1
    assert not (root / "omniglot").exists()
    fetch(mirror.as_uri(), root)  # the received bytes cause no problem
    assert unpacked(root / "omniglot") == EVERYTHING


def test_a_web_page_in_place_of_an_archive_is_deleted_and_named(root):
    with serving(None, page=b"<!DOCTYPE html><title>Sign in</title>") as (base, _):
        done = run("omniglot", str(root), OMNIGLOT_URL=base)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{base}/images_background.zip gave something else" in done.stderr
    assert "<!DOCTYPE html>" in done.stderr
    assert sorted(unpacked(root)) == [".download/lock"]


@pytest.mark.parametrize("sent", [None, b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nPK"])
def test_a_server_that_falls_silent_is_given_up(root, sent):
    """The server never accepts, never answers, or stops in the middle."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def answer():
            connection, _ = listener.accept()
            connection.sendall(sent)
            stop.wait()
            connection.close()

        stop = threading.Event()
        thread = threading.Thread(target=answer if sent is not None else stop.wait)
        thread.start()
        done = run("omniglot", str(root), OMNIGLOT_URL=base, FETCH_PATIENCE="2")  # ends, although the server does not
        stop.set()
        thread.join()
    assert done.returncode == 1
    assert done.stderr.startswith(f"fetch_data.sh: cannot download {base}/images_background.zip (")
    assert done.stderr.count("\n") == 1


def test_a_server_that_refuses_is_tried_again_and_given_up(root):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    start = time.monotonic()
    done = run("omniglot", str(root), OMNIGLOT_URL=f"http://127.0.0.1:{port}", FETCH_PATIENCE="2")
    assert time.monotonic() - start > 1
    assert done.returncode == 1
    assert done.stderr.startswith(f"fetch_data.sh: cannot download http://127.0.0.1:{port}/images_background.zip (")


def test_an_address_without_the_file_fails_at_once(root):
    done = run("omniglot", str(root), OMNIGLOT_URL="file:///nowhere", FETCH_PATIENCE=str(10 * waiting.LIMIT))
    assert done.returncode == 1
    assert "cannot download file:///nowhere/images_background.zip" in done.stderr
