"""What a file is that was given as weights and holds none: a pointer, an error page, an archive to unpack, a download
that did not end.
"""

from __future__ import annotations

from pathlib import Path

SHOWN = 60  # characters of a text file
_START = 4096

_MAGIC = {
    b"\x1f\x8b": "is compressed by gzip; unpack it with gunzip first",
    b"BZh": "is compressed by bzip2; unpack it with bunzip2 first",
    b"\xfd7zXZ\x00": "is compressed by xz; unpack it with unxz first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it with unzstd first",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first",
    b"Rar!": "is a rar archive; unpack it first",
    b"\x89HDF\r\n\x1a\n": (
        "is an HDF5 file of Keras or another framework; give a checkpoint of PyTorch or a .safetensors file"
    ),
    b"GGUF": "is a GGUF file; give a checkpoint of PyTorch or a .safetensors file",
    b"\x89PNG": "is an image; give a checkpoint",
    b"\xff\xd8\xff": "is an image; give a checkpoint",
}
_POINTERS = {
    b"version https://git-lfs.github.com/": (
        "is a pointer of Git LFS, not the file itself; run git lfs pull in its folder, or download the file itself"
    ),
    b"version https://hawser.github.com/": (
        "is a pointer of Git LFS, not the file itself; run git lfs pull in its folder, or download the file itself"
    ),
    b"/annex/objects/": "is a pointer of git-annex, not the file itself; run git annex get in its folder",
    b"../.git/annex/": "is a pointer of git-annex, not the file itself; run git annex get in its folder",
    b".git/annex/": "is a pointer of git-annex, not the file itself; run git annex get in its folder",
    b"outs:": "is a pointer of DVC, not the file itself; run dvc pull in its folder",
    b"# xet version": "is a pointer of git-xet, not the file itself; download the file itself",
}


def describe_foreign(path: Path) -> str | None:
    """Return what a file is that cannot be a checkpoint, with the cure, or None where it may be one. Raises OSError
    where it cannot be read.
    """
    if path.suffix in (".onnx", ".engine"):
        return "is an engine or a network, not a checkpoint; give the weights it was built from"
    with path.open("rb") as file:
        start = file.read(_START)
        file.seek(257)
        tar = file.read(5)
    if not start:
        return "is empty; get the file again"
    if not start.strip(b"\0"):
        return "begins with zeros alone: its download did not end; get the file again"
    for magic, text in (*_MAGIC.items(), *_POINTERS.items()):
        if start.startswith(magic):
            return text
    if tar == b"ustar":
        return "is a tar archive; unpack it first"
    return _describe_text(start)


def _describe_text(start: bytes) -> str | None:
    """Return what a text is. A pickle of protocol 0 is text too: it has no words and ends lines early."""
    body = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = body[:512].lower()
    if lower.startswith((b"<!doctype", b"<html", b"<?xml", b"<error", b"<head", b"<body", b"<!--")):
        return (
            f"is a page of a web site, not the file itself: {_shown(body)}; download the file itself, "
            "logged in where the site asks for it"
        )
    if b"outs:" in lower and b"md5:" in lower:
        return _POINTERS[b"outs:"]
    if b'"weight_map"' in body:
        return "is the index of a checkpoint in several files; join them into one .safetensors file, and give that"
    if body.startswith((b"{", b"[")):
        return f"is a text (JSON), not a checkpoint: {_shown(body)}; download the file itself"
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(start) < _START or error.start < len(body) - 4:  # else a letter cut in two by the end of what was read
            return None
        text = body[: error.start].decode("utf-8")
    if (
        len(text) > 4
        and all(c.isprintable() or c in "\r\n\t" for c in text)
        and (" " in text or text.strip().isprintable())
    ):
        return f"is a text, not a checkpoint: {_shown(body)}; download the file itself"
    return None


def _shown(body: bytes) -> str:
    text = " ".join(body[: 4 * SHOWN].decode("utf-8", "replace").split())
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return repr(clean[:SHOWN] + ("..." if len(clean) > SHOWN else ""))
