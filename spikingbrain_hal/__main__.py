"""``python -m spikingbrain_hal`` is ``sbhal``; with ``--cmakedir`` it says where the CMake package is."""

import sys

if sys.argv[1:] == ["--cmakedir"]:
    from .backend.native import cmake_dir

    print(cmake_dir())
else:
    from .cli import main

    main()
