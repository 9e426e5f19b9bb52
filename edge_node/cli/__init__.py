"""The command line: one module per verb group, thin over the API and the configuration.

Nothing here imports at module level what `--help` does not need: argparse and no more.
"""
