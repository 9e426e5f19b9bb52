"""A city of cameras in the world: the daemon's placement among nodes with emulated accelerators."""
