"""How a rank ends, as its exit status: all that mlx.launch tells of it."""

ORDERLY = 0
STARTUP = 1  # configuration, model or ports: starting again does not help
LOST = (
    3  # only because another rank has gone: starting again may help, and this rank is not to blame
)
TOO_FEW = 4  # the model does not fit on these nodes; with more of them it may
ENGINE = 5  # the engine failed after the start: starting again may help
