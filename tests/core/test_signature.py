"""Signatures: one key and one manifest go together, and everything else is refused."""

import pathlib
import stat
import subprocess
import sys
from collections.abc import Callable

import pytest

from taylorseer.bundle import MANIFEST_NAME, Bundle, open_bundle
from taylorseer.errors import BundleError, DependencyError, OutputError, SignatureError
from taylorseer.signature import SIGNATURE_NAME, new_key, signature_of

pytest.importorskip("cryptography")


@pytest.fixture
def key(tmp_path: pathlib.Path) -> pathlib.Path:
    new_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def signed(make_bundle: Callable[[pathlib.Path], Bundle], tmp_path: pathlib.Path, key: pathlib.Path) -> pathlib.Path:
    folder = make_bundle(tmp_path / "small").folder
    sign(folder, key)
    return folder


def sign(folder: pathlib.Path, key: pathlib.Path) -> None:
    (folder / SIGNATURE_NAME).write_bytes(signature_of((folder / MANIFEST_NAME).read_bytes(), key))


def public(key: pathlib.Path) -> pathlib.Path:
    return key.with_name(f"{key.name}.pub")


def test_a_signed_bundle_is_opened_with_its_key_and_without(signed: pathlib.Path, key: pathlib.Path) -> None:
    assert open_bundle(signed, public_key=public(key)).plans_trusted
    assert not open_bundle(signed).plans_trusted


def test_an_unsigned_bundle_is_refused_where_a_key_is_given(signed: pathlib.Path, key: pathlib.Path) -> None:
    (signed / SIGNATURE_NAME).unlink()
    with pytest.raises(SignatureError, match=r"is not signed \(no manifest\.sig\), and a key was given"):
        open_bundle(signed, public_key=public(key))
    open_bundle(signed)


def test_another_key(signed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = new_key(tmp_path / "other.pem")
    with pytest.raises(SignatureError, match=r"is not signed by .*other\.pem\.pub: it was altered, or signed with"):
        open_bundle(signed, public_key=other)


def test_one_changed_byte_of_the_manifest_even_a_blank(signed: pathlib.Path, key: pathlib.Path) -> None:
    path = signed / MANIFEST_NAME
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(SignatureError, match="is not signed by"):
        open_bundle(signed, public_key=public(key))
    open_bundle(signed)  # it says the same


def test_the_signature_comes_before_the_manifest_is_parsed(signed: pathlib.Path, key: pathlib.Path) -> None:
    (signed / MANIFEST_NAME).write_bytes(b"{")
    with pytest.raises(SignatureError):
        open_bundle(signed, public_key=public(key))


def test_a_signature_of_a_file_is_none_of_its_bundle(signed: pathlib.Path, key: pathlib.Path) -> None:
    """Weights that are altered after the signature do not match the digest in the signed manifest."""
    path = signed / "graphs/weights.data"
    path.write_bytes(b"v" + path.read_bytes()[1:])
    with pytest.raises(BundleError, match=r"weights\.data' does not match its digest"):
        open_bundle(signed, public_key=public(key))


@pytest.mark.parametrize("content", [b"", b"!", b"AAAA", b"A" * 2**17, b"\xff" * 88])
def test_what_is_no_signature(signed: pathlib.Path, key: pathlib.Path, content: bytes) -> None:
    (signed / SIGNATURE_NAME).write_bytes(content)
    with pytest.raises(SignatureError):
        open_bundle(signed, public_key=public(key))


def test_a_signature_that_is_a_link(signed: pathlib.Path, key: pathlib.Path) -> None:
    (signed / SIGNATURE_NAME).rename(signed.parent / "elsewhere")
    (signed / SIGNATURE_NAME).symlink_to("../elsewhere")
    with pytest.raises(SignatureError, match=r"manifest\.sig is no signature"):
        open_bundle(signed, public_key=public(key))


def test_what_is_no_public_key(signed: pathlib.Path, key: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "rsa.pub").write_bytes(other_kind())
    for path, reason in (
        (key, "no public key"),
        (tmp_path / "none", "nothing that can"),
        (tmp_path / "rsa.pub", "no Ed"),
    ):
        with pytest.raises(SignatureError, match=rf"is {reason}.*give an Ed25519 key in a PEM file"):
            open_bundle(signed, public_key=path)


def test_what_is_no_private_key(key: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for path, reason in ((public(key), "no private key"), (tmp_path / "none", "nothing that can be read")):
        with pytest.raises(SignatureError, match=reason):
            signature_of(b"", path)


def other_kind() -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    made = ec.generate_private_key(ec.SECP256R1()).public_key()
    return made.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_new_key_is_its_owners_alone_and_overwrites_none(key: pathlib.Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(OutputError, match=r"cannot be written: .*File exists.*Give another --key"):
        new_key(key)
    assert key.read_bytes() == before


def test_openssl_verifies_it(signed: pathlib.Path, key: pathlib.Path) -> None:
    """The format is nobody's invention: a PEM key, and a signature in base64 over a line and the manifest."""
    import base64

    message, signature = signed.parent / "message", signed.parent / "signature"
    message.write_bytes(b"taylorseer bundle manifest\n" + (signed / MANIFEST_NAME).read_bytes())
    signature.write_bytes(base64.b64decode((signed / SIGNATURE_NAME).read_bytes()))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-inkey", str(public(key))]
    try:
        done = subprocess.run([*command, "-in", message, "-sigfile", signature], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert "Signature Verified Successfully" in done.stdout


def test_without_cryptography_a_key_is_refused_and_bundles_are_opened(
    signed: pathlib.Path, key: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    open_bundle(signed)
    with pytest.raises(DependencyError, match=r"pip install 'taylorseer-trt\[sign\]'"):
        open_bundle(signed, public_key=public(key))
