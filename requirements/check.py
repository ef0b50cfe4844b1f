"""Says what a bare machine lacks before the installation starts (standard library only)."""

import os
import shutil
import sys
import sysconfig

# mmcv is compiled in all sets but this one.
compiles = sys.argv[1] != 'lite'
missing = []
if sys.version_info < (3, 10):  # noqa: UP036, an older one may well run this file
    missing.append(
        f'Python 3.10 or newer ({sys.executable} is {sys.version.split()[0]}); '
        'choose one with PYTHON=python3.11'
    )
else:
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        missing.append('the venv module (Debian and Ubuntu: python3-venv)')
    if compiles and not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')):
        missing.append("Python's C headers (Debian and Ubuntu: python3-dev)")
if compiles and not shutil.which(os.environ.get('CXX', 'c++')) and not shutil.which('g++'):
    missing.append(
        'a C++ compiler (Debian and Ubuntu: g++), which mmcv is built with; STACK=lite needs none'
    )
if missing:
    sys.exit('The installation needs:\n' + '\n'.join(f'  - {item}' for item in missing))
