"""Puts what mim looks for (configs, tools, the model index) into the wheel.

Both mims look below the folder that they take for the installed package:

* openmim takes ``site-packages/mmsmca``, or, where that does not exist, ``site-packages`` joined
  with the first line of ``top_level.txt``;
* onedl-mim takes the first path component of the wheel's RECORD. pip sorts RECORD, and
  ``mmsmca-0.1.0.dist-info`` sorts before ``mmsmca/``.

So a wheel holds the files in both places. An editable installation holds none: onedl-mim then
knows the source folder from pip's record of it, and openmim learns it from ``top_level.txt``,
since joining an absolute path to ``site-packages`` gives that path.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MIM_FILES = ('configs', 'tools', 'model-index.yml')


class MimBuildHook(BuildHookInterface):
    """Adds the files that mim needs to the wheel, see the module's docstring."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Extend hatchling's map of sources to places in the wheel.

        Args:
            version: ``'standard'`` or ``'editable'``.
            build_data: What hatchling is going to build, changed in place.
        """
        dist_info = f'{self.build_config.builder.artifact_project_id}.dist-info'
        # A source has one place in hatchling's map, so what has a second one is copied.
        self.copies = tempfile.TemporaryDirectory()
        if version == 'editable':
            Path(self.copies.name, 'top_level.txt').write_text(f'{self.root}\n')
            build_data['force_include_editable'][self.copies.name] = dist_info
            return
        for name in MIM_FILES:
            source, copy = Path(self.root, name), Path(self.copies.name, '.mim', name)
            build_data['force_include'][str(source)] = f'mmsmca/.mim/{name}'
            copy.parent.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy)
            else:
                shutil.copyfile(source, copy)
        build_data['force_include'][self.copies.name] = dist_info

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copies; arguments as hatchling gives them."""
        self.copies.cleanup()
