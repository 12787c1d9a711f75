"""``taylorseer sign``: put a signature on a bundle, or make the keys for that."""

import argparse
import pathlib

from taylorseer.bundle import MANIFEST_NAME, open_bundle
from taylorseer.errors import InputError
from taylorseer.signature import SIGNATURE_NAME, new_key, signature_of

__all__ = ["add_options", "run"]

SUMMARY = "sign a bundle, so that whoever has the public key knows who made it"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", nargs="?", help="the bundle's folder")
    parser.add_argument("--key", required=True, metavar="FILE", help="an Ed25519 private key in a PEM file")
    parser.add_argument(
        "--new-key", action="store_true", help="make the key first, and FILE.pub for those who verify; overwrites none"
    )


def run(options: argparse.Namespace) -> int:
    """Make the key, sign the bundle, or both."""
    if not options.new_key and options.bundle is None:
        raise InputError("There is nothing to do: give a bundle to sign, or --new-key.")
    if options.new_key:
        print(f"{new_key(options.key)}: the public key of {options.key}, for `--verify-key`")
    if options.bundle is not None:
        _sign(pathlib.Path(options.bundle), options.key)
    return 0


def _sign(folder: pathlib.Path, key: str) -> None:
    """Sign a bundle whose files match its manifest; no other is worth a signature."""
    from taylorseer.runtime.whole_file import write_whole

    bundle = open_bundle(folder)
    signature = signature_of((folder / MANIFEST_NAME).read_bytes(), key)
    write_whole(folder / SIGNATURE_NAME, signature)
    print(f"{folder / SIGNATURE_NAME}: {len(bundle.manifest.files)} files, whose digests match, are signed with {key}")
