"""Control plane: the coordinator on rank 0, and the client that every rank talks to it with."""
