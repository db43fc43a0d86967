"""How long a model takes on a device: fitted from measurements, or estimated from what both are made of."""
