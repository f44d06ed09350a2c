"""Commands run as a user without rights, in a folder with spaces and umlauts, with a read-only home."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from support import ROOT

NOBODY = 65534


class Guest:
    """A user whose folder is below `base`. As root it is `nobody`, else the user that runs the tests."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "Gäste und Läufe"
        self.home = base / "home"
        self.folder.mkdir(parents=True)
        self.home.mkdir()
        self.home.chmod(0o555)
        self.prefix: list[str] = []
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
            enter = reachable(Path(sys.base_prefix), Path(sys.prefix), ROOT)
            become = f'exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "$@"'
            self.prefix = ["unshare", "--mount", "sh", "-ec", f"{enter}\n{become}", "sh"]

    def run(self, *command: str | Path, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder of the guest; output and errors together."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("REPR_RAY", "XDG", "MPL"))}
        ours |= {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "100",
        }
        return subprocess.run(
            [*self.prefix, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            cwd=self.folder,
            env=ours | env,
            check=False,
        )


def reachable(*needed: Path) -> str:
    """Shell commands that make folders accessible to all users, in mounts of this process alone."""
    inside = {}  # folder: its outermost parent that others may not enter
    for path in (path.resolve() for path in needed):
        closed = [parent for parent in path.parents if not parent.stat().st_mode & 0o001]
        if closed:
            inside[path] = closed[-1]
    lines = ["mount --make-rprivate /"]
    lines += [f"kept{i}=$(mktemp -d); mount --bind '{path}' $kept{i}" for i, path in enumerate(inside)]
    lines += [f"mount -t tmpfs -o mode=755 none '{parent}'" for parent in dict.fromkeys(inside.values())]
    lines += [f"mkdir -p '{path}'; mount --bind $kept{i} '{path}'" for i, path in enumerate(inside)]
    return "\n".join(lines)


def possible() -> bool:
    """Whether the tests can run as another user than root on this machine."""
    if os.geteuid() != 0:
        return True
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
