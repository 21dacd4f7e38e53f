"""A shop's mail: what it sends, what becomes of it when the mail server is ill, and where to look."""
