"""The build step that puts configs/ into the package; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """A wheel has the configs as repr_ray/configs. An editable install reads those beside the package."""

    def run(self) -> None:
        """Build the modules, then copy the configs."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib, "repr_ray", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
