"""Fetching from a server on this machine: whole, broken off and taken up again, wrong, away, hostile."""

import hashlib
import http.server
import io
import os
import threading
import zipfile
from dataclasses import replace

import pytest

from covidlib.datasets import download
from covidlib.datasets import remote as remotes
from covidlib.datasets.download import FetchError
from covidlib.datasets.remote import Remote, Set


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files` with Range; breaks off after `break_after` bytes of a body, once."""

    files, requests, break_after, ranges = {}, [], None, True

    def do_GET(self):
        self.requests.append((self.path, self.headers.get("Range")))
        body = self.files.get(self.path)
        if body is None:
            return self.send_error(404)
        start = int(self.headers["Range"][6:-1]) if self.headers.get("Range") and self.ranges else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return None
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop, type(self).break_after = self.break_after, None
        self.wfile.write(body[start : start + stop if stop else None])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Server.files, Server.requests, Server.break_after, Server.ranges = {}, [], None, True
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()
    thread.join()


def packed(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


IMAGES = {"set/a b%1.png": os.urandom(300_000), "set/p/c.png": os.urandom(50_000)}


@pytest.fixture
def archive(server, monkeypatch):
    body = packed(IMAGES)
    Server.files = {"/set.zip": body, "/list.csv": b"file\n"}
    known = Set((Remote(f"{server}/set.zip", ".", f"sha256:{hashlib.sha256(body).hexdigest()}"),
                 Remote(f"{server}/list.csv", "more/list.csv")), 1, "https://example.org/set", "free")
    monkeypatch.setitem(download.SETS, "covid-ct-md", known)
    return body


def left_behind(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_whole(archive, tmp_path):
    (tmp_path / "root").mkdir()
    notes = download.fetch("covid-ct-md", tmp_path / "root")
    assert left_behind(tmp_path) == ["root/a b%1.png", "root/more/list.csv", "root/p/c.png"]
    assert (tmp_path / "root/a b%1.png").read_bytes() == IMAGES["set/a b%1.png"]
    assert notes[0] == "free" and len(notes) == 2 and "list.csv was not checked" in notes[1]
    with pytest.raises(FetchError, match="holds something already"):
        download.fetch("covid-ct-md", tmp_path / "root")


def test_broken_off_and_taken_up_again(archive, tmp_path):
    Server.break_after = 100_000
    with pytest.raises(FetchError, match="goes on where it broke off"):
        download.fetch("covid-ct-md", tmp_path / "root")
    assert not (tmp_path / "root").exists()
    part, = tmp_path.rglob("*.part")
    have = part.stat().st_size
    assert 0 < have <= 100_000
    download.fetch("covid-ct-md", tmp_path / "root")
    assert Server.requests[1] == ("/set.zip", f"bytes={have}-")
    assert (tmp_path / "root/p/c.png").read_bytes() == IMAGES["set/p/c.png"]


@pytest.mark.parametrize("have", ["start", "all", "too much"])
def test_part_that_another_run_left(archive, tmp_path, have):
    Server.ranges = have != "start"
    part = tmp_path / "x.part"
    part.write_bytes({"start": archive[:1000], "all": archive, "too much": archive + b"more"}[have])
    url = download.SETS["covid-ct-md"].files[0].url
    download.Resume(part)(url, tmp_path / "out", None)
    assert (tmp_path / "out").read_bytes() == archive and not part.exists()


def test_wrong_checksum(archive, tmp_path):
    Server.files["/set.zip"] = packed({"set/other.png": b"other"})
    with pytest.raises(FetchError, match="not the file that is expected"):
        download.fetch("covid-ct-md", tmp_path / "root")
    assert left_behind(tmp_path) == []
    Server.files["/set.zip"] = archive
    download.fetch("covid-ct-md", tmp_path / "root")


def test_gone_and_away(archive, tmp_path, monkeypatch):
    del Server.files["/list.csv"]
    with pytest.raises(FetchError, match=r"404.*see https://example.org/set"):
        download.fetch("covid-ct-md", tmp_path / "root")
    away = Set((Remote("http://127.0.0.1:9/set.zip", "."),), 1, "https://example.org/set", "free")
    monkeypatch.setitem(download.SETS, "covid-ct-md", away)
    with pytest.raises(FetchError, match="Check the connection"):
        download.fetch("covid-ct-md", tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(("body", "message"), [
    (packed({"fine.png": b"fine", "../../evil.txt": b"evil"}), "leads elsewhere"),
    (packed({"large": bytes(2000)}), "more than 0 MB when unpacked.*see a page"),
    (b"<html>sign in</html>", "cannot be unpacked"),
    (packed(IMAGES).replace(IMAGES["set/p/c.png"][:9], b"123456789"), "cannot be unpacked"),
], ids=["parent", "bomb", "page", "damaged"])
def test_hostile_or_damaged_archive(server, tmp_path, monkeypatch, body, message):
    Server.files = {"/set.zip": body}
    known = Set((Remote(f"{server}/set.zip", "."),), 1e-6 if "more than" in message else 1, "a page", "free")
    monkeypatch.setitem(download.SETS, "covid-ct-md", known)
    with pytest.raises(FetchError, match=message):
        download.fetch("covid-ct-md", tmp_path / "a" / "b")
    assert not (tmp_path / "a/b").exists() and not list(tmp_path.rglob("evil*"))
    Server.files = {"/set.zip": packed({"sound.png": b"sound"})}
    assert download.fetch("covid-ct-md", tmp_path / "a" / "b")
    assert left_behind(tmp_path) == ["a/b/sound.png"]


def test_images_are_checked_against_the_shipped_list(server, tmp_path, monkeypatch, shared_data):
    folder = shared_data / "ucsd-covid-ct"
    for part in ("CT_COVID", "CT_NonCOVID"):
        files = sorted((folder / "Images-processed" / part).iterdir())
        images = {f"{part}/{file.name}": file.read_bytes() for file in files}
        Server.files[f"/Images-processed/{part}.zip"] = packed({**images, "__MACOSX/._x": b"junk"})
    for file in (folder / "Data-split").rglob("*.txt"):
        Server.files["/" + file.relative_to(folder).as_posix()] = file.read_bytes()
    known = download.SETS["ucsd-covid-ct"]
    moved = tuple(Remote(remote.url.replace(remotes._UCSD, f"{server}/"), remote.into, remote.known_hash)
                  for remote in known.files)
    monkeypatch.setitem(download.SETS, "ucsd-covid-ct", replace(known, files=moved))
    notes = download.fetch("ucsd-covid-ct", tmp_path / "root")
    assert notes[1].startswith("All 746 images") and len(left_behind(tmp_path / "root")) == 752
    images["CT_NonCOVID/102.png"] += b"\0"
    Server.files["/Images-processed/CT_NonCOVID.zip"] = packed(images)
    with pytest.raises(FetchError, match=r"1 of the 746 images.*102.png is another"):
        download.fetch("ucsd-covid-ct", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_sets_behind_a_login_say_what_to_do(tmp_path, capsys):
    for name in download.BY_HAND:
        with pytest.raises(FetchError, match="is not fetched by this program"):
            download.fetch(name, tmp_path)
    with pytest.raises(FetchError, match="kaggle.com.*COVID and non-COVID"):
        download.fetch("sarscov2-ct", tmp_path)
    with pytest.raises(FetchError, match="Received: dataset='unheard'"):
        download.fetch("unheard", tmp_path)
    with pytest.raises(SystemExit, match="kaggle.com"):
        download.main(["covidx-ct", str(tmp_path / "x")])


def test_command_line(archive, tmp_path, capsys):
    download.main(["covid-ct-md", str(tmp_path / "root")])
    assert "covid-ct-md is in" in capsys.readouterr().out
