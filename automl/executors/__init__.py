"""Running networks, and timing them."""
