"""Streams: any fsspec URL in, its decompressed bytes and their sha256 out, or an error that says what it is instead."""

import bz2
import hashlib
import io
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import IO, Any, NoReturn, Protocol

import fsspec
import pyarrow as pa
from isal import igzip_lib

from polysome.config import DataError
from polysome.storage import absent_fix

HEAD_BYTES = 4096
_PIECE_BYTES = 1 << 20
_INPUT_BYTES = 1 << 16
_AGAIN = "fetch it again"

_MAGIC = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\x00", "zstd": b"\x28\xb5\x2f\xfd"}
_ENDINGS = {
    ".gz": "gzip",
    ".bgz": "gzip",
    ".bgzf": "gzip",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".zst": "zstd",
    ".zstd": "zstd",
}
_MEMBER_HEAD = 18
"""Bytes of a gzip member that show whether it is a BGZF block."""

_BZIP2_BLOCKS = b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"
"""What follows the level in a bzip2 archive: its first block, or its end where it holds nothing."""

# PAR1 and CRAM alone could begin a text; the byte after them cannot.
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive", "name the member to read: zip://<member>::<address>"),
    (b"PK\x05\x06", "an empty zip archive", _AGAIN),
    (b"\x1f\x9d", "compressed by Unix compress", "decompress it with `uncompress`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
    (b"PAR1\x15", "a Parquet file", "declare `format: parquet`"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "declare `format: anndata` where it is one"),
    (b"SQLite format 3\x00", "an SQLite database", "export its table as CSV"),
    (b"%PDF-", "a PDF document", "check the address"),
    (b"BAM\x01", "a BAM file", "convert it with `samtools fasta` or `samtools fastq`"),
    (b"CRAM\x03", "a CRAM file", "convert it with `samtools fasta` or `samtools fastq`"),
    (b".sff", "a binary SFF file of 454 reads", "convert it to FASTQ"),
    (b"\x43\x27\x41\x1a", "a binary 2bit file", "convert it with `twoBitToFa`"),
    (b"\x1a\x41\x27\x43", "a binary 2bit file", "convert it with `twoBitToFa`"),
    (b"\t\x00\x00\x00\x0eSnapGene", "a binary SnapGene file", "export it as GenBank or FASTA"),
)
_PROLOG = re.compile(rb"(?:\s|<!--.*?-->|<\?.*?\?>)*", re.DOTALL)
_XML = re.compile(rb"<(?:!doctype\s|error>|[a-z][\w:.-]*\s[^>]*xmlns)", re.IGNORECASE)
_HTML = re.compile(rb"<(?:!doctype\s+html|(?:html|head|body|title|script|meta)[\s>/])", re.IGNORECASE)


def open_stream(url: str, *, decompress: bool = True) -> "Stream":
    """Open any fsspec URL, chained ones (`zip://member::https://…`, `tar://member::…`) included.

    Compression is told by the first bytes, not by the name: gzip (of several members, BGZF), bzip2, xz, zstd. Without
    `decompress` the stream gives the bytes as they are stored, of a format that need not be text.

    Raises:
        DataError: nothing is there, it cannot be reached, it is empty, or it is something else than data: a git-lfs
            pointer, an HTML page, XML, and, with `decompress`, an archive without a named member, a binary format, or a
            file whose name promises a compression that its content has not.
    """
    source = _open(url)
    try:
        head = source.peek(HEAD_BYTES)
        if not head:
            raise DataError("an empty file", where=f"{url}, byte 0", fix=_AGAIN)
        _refuse_page(head, url)
        if not decompress:
            return Stream(url, source, _pieces(source, None))
        _refuse_foreign(head, url)
        compression = _compression(head)
        if compression is None:
            _refuse_promised(url, head)
        stream = Stream(url, source, _pieces(source, compression))
        if compression is not None:
            _refuse_content(stream.peek(HEAD_BYTES), url, compression)
    except BaseException:
        source.close()
        raise
    return stream


class Stream(io.BufferedIOBase):
    """The decompressed bytes of one file, forwards only.

    Unlike other binary files, `read` and `peek` give fewer bytes than asked for only at the end of the content.

    Raises:
        DataError: from every reading method, when the archive turns out cut short or damaged, or the connection fails.
    """

    def __init__(self, url: str, source: "_Source", pieces: Iterator[bytes]) -> None:
        """See `open_stream`."""
        self.url = url
        self.position = 0
        """Bytes of decompressed content that were read."""
        self._source = source
        self._pieces = pieces
        self._ahead = b""
        self._start = 0
        self._digest = hashlib.sha256()
        self._failure: DataError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """The next `size` bytes; all that are left when it is negative or None."""
        missing = -1 if size is None else size
        pieces: list[bytes] = []
        while missing and (self._start < len(self._ahead) or self._fill()):
            piece = self._ahead[self._start :] if missing < 0 else self._ahead[self._start : self._start + missing]
            self._start += len(piece)
            self.position += len(piece)
            missing -= len(piece) if missing > 0 else 0
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read1(self, size: int = -1, /) -> bytes:
        """As `read`, of what is decompressed already where that is not nothing."""
        if self._start == len(self._ahead):
            self._fill()
        ready = len(self._ahead) - self._start
        return self.read(ready if size < 0 else min(size, ready))

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer`; the number of bytes, fewer than its length only at the end."""
        view = memoryview(buffer).cast("B")
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def peek(self, size: int = HEAD_BYTES, /) -> bytes:
        """The next `size` bytes, which later reads give again."""
        while len(self._ahead) - self._start < size and self._fill():
            pass
        return self._ahead[self._start : self._start + size]

    def chunks(self, size: int = _PIECE_BYTES) -> Iterator[bytes]:
        """What is left, `size` bytes at a time."""
        while piece := self.read(size):
            yield piece

    def hexdigest(self) -> str:
        """The sha256 of the whole decompressed content; reads to its end first."""
        while self.read(_PIECE_BYTES):
            pass
        return self._digest.hexdigest()

    def readable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """See `position`."""
        return self.position

    def close(self) -> None:
        """Close the file below."""
        self._source.close()
        super().close()

    def _fill(self) -> bool:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._failure:
            # A generator that raised is at its end: without this, a second read would take the damage for that end.
            raise self._failure
        try:
            piece = next(self._pieces, b"")
        except DataError as error:
            self._failure = error
            raise
        self._digest.update(piece)
        self._ahead = self._ahead[self._start :] + piece if self._start < len(self._ahead) else piece
        self._start = 0
        return bool(piece)


class _Source:
    """The file as it is stored, and the errors of whatever storage it lies on."""

    def __init__(self, url: str, raw: IO[bytes], owner: object = None) -> None:
        self.url = url
        self.position = 0
        self._raw = raw
        # A zip or tar file system closes the outer file when nothing refers to it any more.
        self._owner = owner
        self._ahead = b""

    @property
    def closed(self) -> bool:
        return bool(self._raw.closed)

    def close(self) -> None:
        self._raw.close()

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (piece := self._next(size)):
            self._ahead += piece
        return self._ahead

    def read(self, size: int) -> bytes:
        """At most `size` bytes, none only at the end."""
        piece, self._ahead = (self._ahead[:size], self._ahead[size:]) if self._ahead else (self._next(size), b"")
        self.position += len(piece)
        return piece

    def _next(self, size: int) -> bytes:
        try:
            return self._raw.read(size)
        except (EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
            self.fail(f"the archive is damaged or cut short: {error or 'it ends too early'}", error)
        except Exception as error:  # every kind of storage has exceptions of its own
            self.fail(f"cannot be read on: {type(error).__name__}: {error}", error)

    def fail(self, what: str, cause: BaseException | None = None, *, at: int | None = None) -> NoReturn:
        where = f"{self.url}, byte {self.position if at is None else at}"
        raise DataError(what, where=where, fix=_AGAIN) from cause


def _open(url: str) -> _Source:
    try:
        file = fsspec.open(url, "rb")
        return _Source(url, file.open(), owner=file)
    except (FileNotFoundError, KeyError) as error:
        # tarfile says KeyError for a member that is not there.
        raise DataError(f"no such file: {url}", where=url, fix=absent_fix(url)) from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        _, _, outer = url.partition("::")
        if outer:
            with closing(_open(outer)) as source:
                _refuse_page(source.peek(HEAD_BYTES), outer)
        raise DataError(f"the archive is damaged or cut short: {error}", where=url, fix=_AGAIN) from error
    except Exception as error:  # every kind of storage has exceptions of its own
        raise DataError(f"cannot open {url}: {error}", where=url, fix=absent_fix(url)) from error


def _compression(head: bytes) -> str | None:
    found = next((name for name, magic in _MAGIC.items() if head.startswith(magic)), None)
    if found == "bzip2" and not any(block.startswith(head[4:10]) for block in _BZIP2_BLOCKS):
        return None
    return found


def _refuse_page(head: bytes, url: str) -> None:
    where = f"{url}, byte 0"
    if head.startswith(b"version https://git-lfs"):
        raise DataError("a git-lfs pointer, not the data", where=where, fix="fetch the file with `git lfs pull`")
    text = head.removeprefix(b"\xef\xbb\xbf")
    prolog = _PROLOG.match(text)
    begins = text[prolog.end() :] if prolog else text
    if _HTML.match(begins) or begins.startswith(b"<!--"):
        raise DataError("an HTML page, not the data", where=where, fix="check the address: a page was saved")
    if text.lstrip().startswith(b"<?xml") or _XML.match(begins):
        raise DataError("XML, which is not read", where=where, fix="convert it, or check the address")


def _refuse_content(head: bytes, url: str, compression: str) -> None:
    """Refuse what an archive holds where that is not text."""
    where = f"{url}, byte 0"
    if not head:
        raise DataError(f"an empty file, compressed by {compression}", where=where, fix=_AGAIN)
    _refuse_page(head, url)
    _refuse_foreign(head, url)
    if (inner := _compression(head)) is not None:
        raise DataError(f"compressed twice: {inner} within {compression}", where=where, fix="decompress it once")


def _refuse_foreign(head: bytes, url: str) -> None:
    for magic, what, fix in _FOREIGN:
        if head.startswith(magic):
            raise DataError(f"{what}, not text", where=f"{url}, byte 0", fix=fix)
    if head[257:262] == b"ustar":
        raise DataError(
            "a tar archive, not text",
            where=f"{url}, byte 0",
            fix="name the member to read: tar://<member>::<address>",
        )


def _refuse_promised(url: str, head: bytes) -> None:
    name = url.partition("::")[0].lower()
    promised = next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), None)
    if promised is not None:
        raise DataError(
            f"named as {promised}, but it begins with {head[:16]!r}, which no compression does",
            where=f"{url}, byte 0",
            fix="fetch it again, or, where the content is the right one, take the ending from its name",
        )


def _pieces(source: _Source, compression: str | None) -> Iterator[bytes]:
    match compression:
        case "gzip":
            return _members(source, "gzip", lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))
        case "bzip2":
            return _members(source, "bzip2", bz2.BZ2Decompressor)
        case "xz":
            return _members(source, "xz", lzma.LZMADecompressor)
        case "zstd":
            return _zstd(source)
        case _:
            return iter(lambda: source.read(_PIECE_BYTES), b"")


class _Decompressor(Protocol):
    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def _members(source: _Source, kind: str, begin: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress one member after another; zeros between and after them are padding.

    A BGZF file, each of whose blocks is a member, ends with an empty block (SAM specification, 4.1.2).
    """
    magic = _MAGIC[kind]
    rest, blocked, empty = b"", False, True
    while True:
        rest = rest.lstrip(b"\0")
        while len(rest) < _MEMBER_HEAD and (more := source.read(_INPUT_BYTES)):
            rest = (rest + more).lstrip(b"\0")
        if not rest:
            break
        start = source.position - len(rest)
        if not magic.startswith(rest[: len(magic)]):
            source.fail(f"bytes that are no {kind} follow the end of the {kind} archive", at=start)
        blocked, empty = kind == "gzip" and rest[3:4] == b"\x04" and rest[12:14] == b"BC", True
        decompressor: _Decompressor = begin()
        while not decompressor.eof:
            if not rest and decompressor.needs_input and not (rest := source.read(_INPUT_BYTES)):
                source.fail(f"the {kind} archive is cut short")
            try:
                piece = decompressor.decompress(rest, _PIECE_BYTES)
            except (OSError, EOFError, ValueError, lzma.LZMAError, igzip_lib.IsalError) as error:  # type: ignore[misc]
                source.fail(f"the {kind} archive is damaged: {error}", error, at=start)
            rest = b""
            if piece:
                empty = False
                yield piece
        rest = decompressor.unused_data
    if blocked and not empty:
        source.fail("the BGZF archive is cut short: the block that marks its end is missing")


def _zstd(source: _Source) -> Iterator[bytes]:
    stream = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), "zstd")
    while True:
        try:
            piece = stream.read(_PIECE_BYTES)
        except OSError as error:
            cut = "Truncated" in str(error)
            source.fail("the zstd archive is cut short" if cut else f"the zstd archive is damaged: {error}", error)
        if not piece:
            return
        yield piece
