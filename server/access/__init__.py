"""Who may do what: keys, tokens, roles, addresses, limits, and the audit log.  No MLX, no engine."""
