"""Reading a config of ours takes MMEngine a tenth of a second: all metafiles of MMDetection.

It reads them for every file that inherits from one of MMDetection's, and looks up where MMDetection
is installed; here it does both once in a process.
"""

from functools import cache

from mmengine.config import config, utils

utils.load = cache(utils.load)
config.is_installed = cache(config.is_installed)
config.get_installed_path = cache(config.get_installed_path)
