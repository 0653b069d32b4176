"""Stage one: choose neurons and reset them."""
