"""Tests that wrong, damaged and hostile archives are rejected before anything is unpacked, and deleted."""

import resource
import shutil
import stat
import zipfile

import pytest
from mirrors import EVERYTHING, fetch, serving, unpacked

from reptile_tf.fetch import archive

pytestmark = [
    pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed"),
    pytest.mark.usefixtures("direct"),
]


def test_an_archive_with_other_images_is_deleted(mirror, root):
    with zipfile.ZipFile(mirror / "images_evaluation.zip", "a") as file:
        file.writestr("images_evaluation/Latin/character01/extra.png", b"?")
    with pytest.raises(
        archive.FetchError, match=r"file:.*/images_evaluation\.zip .*10 images are not the published ones"
    ):
        fetch(mirror.as_uri(), root)
    assert sorted(unpacked(root)) == [".download/images_background.zip", ".download/lock"]


def link(name: str, kind: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (kind | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "content", "complaint"),
    [
        ("../escaped.png", b"", "does not lie below"),
        ("images_background/../../escaped.png", b"", "does not lie below"),
        ("images_background/./a.png", b"", "does not lie below"),
        ("images_background//a.png", b"", "does not lie below"),
        ("/tmp/escaped.png", b"", "does not lie below"),
        ("C:/escaped.png", b"", "does not lie below"),
        ("images_background\\..\\..\\escaped.png", b"", "does not lie below"),
        ("images_background", b"", "clashes"),
        ("images_evaluation/Latin/character01/a.png", b"", "does not lie below"),
        (link("images_background/a.png", stat.S_IFLNK), b"/etc/passwd", "neither a file nor a folder"),
        (link("images_background/a.png", stat.S_IFIFO), b"", "neither a file nor a folder"),
        (link("images_background/a.png", stat.S_IFBLK), b"", "neither a file nor a folder"),
        (link("images_background/a.png", stat.S_IFCHR), b"", "neither a file nor a folder"),
        (link("images_background/a.png", stat.S_IFSOCK), b"", "neither a file nor a folder"),
        (link("images_background/b/", stat.S_IFLNK), b"", "neither a file nor a folder"),
        ("images_background/latin/character01/0000_01.png", b"", "clashes"),
        ("images_background/Latin/character01", b"", "clashes"),
        ("images_background/Latin/character01/0000_01.png/a.png", b"", "clashes"),
        ("images_background/a.png", bytes(archive._MAX_BYTES), "far more"),
    ],
)
def test_a_hostile_archive_is_refused_before_anything_is_written(mirror, root, entry, content, complaint):
    with zipfile.ZipFile(mirror / "images_background.zip", "a") as file:
        file.writestr(entry, content, zipfile.ZIP_DEFLATED)
    with pytest.raises(archive.FetchError, match=f"something else: .*{complaint}.*; deleted it"):
        fetch(mirror.as_uri(), root)
    assert sorted(unpacked(root)) == [".download/lock"]


def test_entries_that_python_would_unpack_without_bounds_are_refused(mirror, root):
    with zipfile.ZipFile(mirror / "images_background.zip", "a") as file:
        file.writestr("images_background/a.png", bytes(1000), zipfile.ZIP_BZIP2)
    with pytest.raises(archive.FetchError, match="packed in an unusual way"):
        fetch(mirror.as_uri(), root)


def test_an_archive_of_too_many_entries_is_refused(mirror, root, monkeypatch):
    monkeypatch.setattr(archive, "_MAX_ENTRIES", 10)
    with pytest.raises(archive.FetchError, match="far more than it should"):
        fetch(mirror.as_uri(), root)


def test_a_bomb_whose_directory_lies_about_its_size_is_refused(mirror, root):
    """The entry declares ten bytes, but unpacks to a hundred million."""
    path = mirror / "images_background.zip"
    entry = "images_background/a.png"
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(entry, bytes(100_000_000), zipfile.ZIP_DEFLATED)
        (true,) = (each for each in file.infolist() if each.filename == entry)
    content = path.read_bytes()
    assert content.count((100_000_000).to_bytes(4, "little")) == 2
    path.write_bytes(content.replace((100_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    assert true.file_size == 100_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(archive.FetchError, match="not a sound zip file .*CRC"):
        fetch(mirror.as_uri(), root)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert sorted(unpacked(root)) == [".download/lock"]


def test_a_download_without_end_is_cut_off(root, monkeypatch):
    monkeypatch.setattr(archive, "_MAX_BYTES", 1 << 20)
    with (
        serving(None, page=bytes(2 << 20)) as (base, _),
        pytest.raises(archive.FetchError, match="more than 1 MB came"),
    ):
        fetch(base, root)
    assert sorted(unpacked(root)) == [".download/lock"]


@pytest.mark.parametrize("harm", [lambda whole: whole[:-30], lambda whole: whole[:9999] + b"?" + whole[10000:]])
def test_a_damaged_archive_is_deleted_and_the_next_run_succeeds(mirror, root, harm):
    file = mirror / "images_background.zip"
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    with pytest.raises(archive.FetchError, match="it is not a sound zip file"):
        fetch(mirror.as_uri(), root)
    file.write_bytes(whole)
    fetch(mirror.as_uri(), root)
    assert unpacked(root / "omniglot") == EVERYTHING
