"""Where frames come from and where answers go.

Owns the sources (files, streams, devices, the generated scene), the loop of each agent and the
outputs. Importing this package imports neither numpy nor PyAV; `sources` and `scene` do, and are
imported in worker processes only.
"""
