"""The processes of a server: constructs and connects all parts, starts and stops them."""
