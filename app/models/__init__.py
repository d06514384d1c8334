"""Networks and the voxel-wise regression. Nothing here reads or writes a file."""
