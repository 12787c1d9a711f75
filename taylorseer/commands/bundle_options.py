"""The bundle that a command works on, and whom its user trusts for it."""

import argparse

from taylorseer.bundle import Bundle, open_bundle

__all__ = ["add_bundle", "open_asked"]


def add_bundle(parser: argparse.ArgumentParser, *, optional: bool = False, text: str = "the bundle's folder") -> None:
    """Add the argument ``bundle``, ``--verify-key`` and ``--trust-plans``.

    Args:
        parser: of the command.
        optional: whether the command works without a bundle too.
        text: what the help says of the bundle.
    """
    parser.add_argument("bundle", nargs="?" if optional else None, help=text)
    group = parser.add_argument_group("trust", "a bundle from elsewhere: see docs/security.md")
    group.add_argument("--verify-key", metavar="FILE.pub", help="refuse the bundle unless this key has signed it")
    group.add_argument(
        "--trust-plans", action="store_true", help="load TensorRT plans that were not built here: they are code"
    )


def open_asked(options: argparse.Namespace, *, check_digests: bool = True) -> Bundle:
    """Open the bundle that was asked for.

    Raises:
        BundleError: as :func:`taylorseer.bundle.open_bundle` does.
    """
    return open_bundle(
        options.bundle,
        check_digests=check_digests,
        public_key=options.verify_key,
        trust_plans=options.trust_plans,
    )
