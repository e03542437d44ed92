"""Certificates: whom they name, how they are made and checked, and what is made of them.  No MLX here."""
