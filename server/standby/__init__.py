"""A rank that is started before it is needed: it has imported everything and waits to be told what it is.

`launcher.standby` is the other side.  Nothing here imports MLX before `__main__` is asked to.
"""
