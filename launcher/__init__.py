"""Runs mlx.launch and watches it.  Knows no MLX."""
