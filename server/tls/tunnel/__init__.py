"""MLX's ring inside TLS: a small process beside each rank carries its traffic to the neighbours and back.

    rank --socket pair-- tunnel ==TLS== tunnel of the next rank --socket pair-- next rank

MLX holds the interpreter's lock while it joins, so this is a process of its own.  MLX only knows addresses,
so it joins by local ones, where nobody else takes part; then its sockets are replaced by ends of socket pairs,
and nothing that the ranks send is on any network interface, the loopback one included, but inside TLS.
"""
