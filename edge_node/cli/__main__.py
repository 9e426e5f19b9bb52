"""Run the command line as `python -m edge_node.cli`."""

import sys

from edge_node.cli.main import main

sys.exit(main())
