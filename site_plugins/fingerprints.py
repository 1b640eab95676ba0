"""Telling whether what lies at a path is still the same, without reading it.

Of a local file or folder the relative name, size and modification time of every
file count; of any other fsspec URL what its filesystem tells of every file
(entity tag, checksum, generation, size, modification time).  The small metadata
documents of Zarr are read too: they decide on how everything else is decoded.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec

__all__ = ["fingerprint", "local_path"]

METADATA = {"zarr.json", ".zmetadata", ".zgroup", ".zarray", ".zattrs"}
LOCAL_PROTOCOLS = ("file://", "local://")
IDENTIFYING = (
    "size", "etag", "checksum", "crc32c", "md5", "md5hash", "contentmd5", "content-md5",
    "content_md5", "digest", "sha256", "hash", "generation", "versionid", "version_id", "mtime",
    "modified", "lastmodified", "last_modified", "last-modified", "updated", "created",
    "date_time", "crc",
)  # fmt: skip
"""What filesystems call that which changes with a file's content, in lower case."""


def local_path(path: str) -> str | None:
    """Return the local path that a path or fsspec URL means, or None if it means no local one.

    Examples
    --------
    >>> local_path("file:///data/a1b.nc"), local_path("s3://bucket/a1b.zarr")
    ('/data/a1b.nc', None)
    """
    for protocol in LOCAL_PROTOCOLS:
        if path.startswith(protocol):
            return path.removeprefix(protocol)
    return None if "://" in path or "::" in path else path


def fingerprint(path: str, storage_options: Mapping[str, Any], settings: str = "") -> str:
    """Digest what identifies the content at a path.

    Parameters
    ----------
    path : str
        A local path or any fsspec URL, of a file or of a folder.
    storage_options : mapping
        Options of the filesystem.
    settings : str, optional
        Whatever else decides on the values that are read.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    Exception
        Whatever a filesystem raises that cannot be asked.
    """
    local = local_path(path)
    lines = _remote(path, storage_options) if local is None else _local(local)
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for line in lines:
        # The length in front keeps one line from reading as two.
        digest.update(b"%d:" % len(line))
        digest.update(line)
    return digest.hexdigest()


def _local(path: str) -> Iterator[bytes]:
    if not os.path.isdir(path):
        yield _line("", os.stat(path))
        return
    yield from _folder(path, "", frozenset())


def _folder(path: str, name: str, above: frozenset[tuple[int, int]]) -> Iterator[bytes]:
    status = os.stat(path)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return  # A symbolic link to a folder that it lies in.
    with os.scandir(path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        relative = f"{name}{entry.name}"
        if entry.is_dir():
            yield from _folder(entry.path, f"{relative}/", above | {here})
            continue
        # Before the document is read, so that a change between the two is seen the next time.
        yield _line(relative, entry.stat())
        if entry.name in METADATA:
            with open(entry.path, "rb") as file:
                yield file.read()


def _line(name: str, status: os.stat_result) -> bytes:
    return b"%s %d %d" % (os.fsencode(name), status.st_size, status.st_mtime_ns)


def _remote(path: str, storage_options: Mapping[str, Any]) -> Iterator[bytes]:
    filesystem, root = fsspec.core.url_to_fs(path, **storage_options)
    filesystem.invalidate_cache()
    root = root.rstrip("/")
    documents = [f"{root}/{name}" for name in sorted(METADATA)]
    try:
        info = filesystem.info(root)
        files = {root: info} if info["type"] == "file" else filesystem.find(root, detail=True)
        documents = [name for name in documents if name in files]
    except FileNotFoundError:
        # A web server may know no folders; a Zarr store there is known by its documents.
        files = {}
    for name in sorted(files):
        yield name.removeprefix(root).encode() + b" " + _identity(filesystem, name, files[name])
    found = bool(files)
    for name in documents:
        try:
            content = filesystem.cat_file(name)
        except FileNotFoundError:
            continue
        found = True
        yield posixpath.basename(name).encode()
        yield content
    if not found:
        raise FileNotFoundError("nothing is there")


def _identity(filesystem: Any, path: str, info: Mapping[str, Any]) -> bytes:
    known = {key.lower(): value for key, value in info.items() if value is not None}
    chosen = {key: str(known[key]) for key in IDENTIFYING if key in known}
    if len(chosen) < 2:
        # A size alone identifies nothing; the filesystem may know a better way.
        return str(filesystem.checksum(path)).encode()
    return repr(sorted(chosen.items())).encode()
