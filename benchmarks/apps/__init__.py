"""The two apps that are compared, and the work that both do."""
