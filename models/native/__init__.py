"""C sources of the native executor; `setup.py` compiles them where a compiler is at hand."""
