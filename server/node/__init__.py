"""HTTP on every node: cluster routes of rank 0, forwarding of the others, the health port, serving."""
