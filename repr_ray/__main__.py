"""repr-ray: one command for launching, reporting, and looking settings up."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from repr_ray import __version__

COMMANDS = {
    "launch": "train every scheme of an experiment with every seed, and compare them",
    "report": "write the tables and pictures of results again",
    "explain": "say what a setting means",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; returns its exit status, 2 for one that does not exist."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name == "--version":
        print(f"repr-ray {__version__}")
        return 0
    if name in COMMANDS:
        module = import_module(f"repr_ray.{name}")
        command: Callable[[Sequence[str], str], int] = getattr(module, "command", module.main)
        return command(rest[:-1], f"repr-ray {name}")
    usage = "\n".join(f"  repr-ray {known:8} {meaning}" for known, meaning in COMMANDS.items())
    asked = name in ("-h", "--help")
    print(
        f"usage: repr-ray {{{','.join(COMMANDS)}}} ... | --version\n\n{usage}\n\neach with --help",
        file=sys.stdout if asked else sys.stderr,
    )
    if name and not asked:
        print(f"\nrepr-ray: there is no command {name!r}", file=sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
